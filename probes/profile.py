"""One model's profile: its junctions, and the probes' tables of one forward and backward; as text for a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch.nn.functional as F
from torch import Tensor, nn

from .discovery.junctions import find_junctions
from .measurements.contributions import contributions
from .measurements.gradient_norms import gradient_norms
from .measurements.iterative_inference import iterative_inference
from .measurements.paths import path_contributions
from .measurements.read_out import class_labels
from .measurements.residual_magnitudes import residual_magnitudes
from .measurements.stream_statistics import stream_statistics
from .recording import Recording, record
from .sources import first_output, one_line
from .tables import stacked

MEASUREMENTS = (gradient_norms, residual_magnitudes, contributions, stream_statistics, iterative_inference)
COLUMNS = (
    ("gradient norm", "gradient_norms", "total"),
    ("branch / shortcut", "residual_magnitudes", "ratio"),
)
SHOWN = 6  # checkpoints, in text
BAR = 16  # characters
BARS = "Gradient norms: at each junction's fork; of all paths of a length, at the first fork. Bars are logarithmic."


@dataclass(frozen=True)
class Profile:
    """What was measured of a model."""

    adds: pd.DataFrame
    """Every add, its verdict and the reason, as ``find_junctions(..., explain=True)`` gives them."""
    tables: dict[str, pd.DataFrame]
    """By the name of the probe."""
    notes: list[str]
    """What could not be measured, and why."""

    @property
    def junctions(self) -> pd.DataFrame:
        """A row for each junction: block, depth, shortcut (its kind), gradient norm (at its fork; nan where none came),
        branch / shortcut (the ratio of their norms)."""
        found = self.adds[self.adds["verdict"] != "none"].rename(columns={"verdict": "shortcut"})
        found = found[["block", "depth", "shortcut"]].astype({"depth": int}).reset_index(drop=True)
        for name, probe, quantity in COLUMNS:
            table = self.tables[probe]
            values = table[table["quantity"] == quantity].set_index("block")["value"]
            found[name] = values.reindex(found["block"]).to_numpy()
        return found

    @property
    def drawn(self) -> pd.DataFrame:
        """One table of what the figure ``profiles`` draws: gradient norms, ratios and cosines, shares of lengths."""
        sizes = self.tables["residual_magnitudes"]  # its norms of the addends have the names of the gradients' parts
        parts = [self.tables["gradient_norms"], sizes[sizes["quantity"].isin(["ratio", "cosine"])]]
        parts += [self.tables["path_contributions"]] if "path_contributions" in self.tables else []
        return stacked(parts)


def spectrum(recording: Recording) -> dict[str, pd.DataFrame]:
    """The exact path lengths, as the one table of its kind."""
    return {"path_contributions": path_contributions(recording)}


def measure(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    labels: Tensor | None = None,
    *,
    most_junctions: int = 30,
    of_paths: Callable[[Recording], dict[str, pd.DataFrame]] = spectrum,
) -> Profile:
    """Find a model's junctions, and measure them in one forward and backward.

    The loss is the mean square of the model's first output, or cross-entropy where there are labels.

    Args:
        model: In the mode in which it is to be measured. In train mode a BatchNorm moves its running statistics.
        inputs: By name, or under "" a positional one.
        labels: Classes, (N,).
        most_junctions: Path lengths are taken in networks of up to this many junctions.
        of_paths: What is measured of them: tables by name.

    Returns:
        The profile, without graph or tensors.

    Raises:
        ValueError: The model fails on these inputs, hides its adds, or has no junctions; the labels do not fit its
            output.
    """
    positional = [x for name, x in inputs.items() if not name]
    named = {name: x for name, x in inputs.items() if name}
    try:
        adds = find_junctions(model, *positional, explain=True, **named)
    except Exception as error:
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs.values())
        raise ValueError(
            f"the model fails on an input of shape {shapes} (change it by --shape, --image-size or --length): "
            f"{one_line(error)}"
        ) from None
    count = int((adds["verdict"] != "none").sum())
    if not count:
        raise ValueError(
            f"none of the model's {len(adds)} adds is a residual junction; for such a network name the modules that "
            "count as depth in Python: record(model, blocks=[...])"
        )
    paths = count <= most_junctions
    with record(model, keep=True) as recording:
        output = first_output(model(*positional, **named)).float()
        _loss(output, labels).backward(retain_graph=paths)
    tables = {probe.__name__: probe(recording) for probe in MEASUREMENTS}
    if not paths:
        return Profile(adds, tables, [f"path lengths: not taken of {count} junctions; raise --paths to have them"])
    try:
        return Profile(adds, tables | of_paths(recording), [])
    except ValueError as error:
        return Profile(adds, tables, [f"path lengths: {error}"])


def _loss(output: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        return output.square().mean()
    if output.dim() != 2 or len(output) != len(labels):
        raise ValueError(
            f"labels {tuple(labels.shape)} want an output ({len(labels)}, classes), and it is {tuple(output.shape)}: "
            "leave the labels out, or wrap the model"
        )
    return F.cross_entropy(output, class_labels(labels, output.shape[1], "labels").to(output.device))


def one_table(profiles: Mapping[str, Profile]) -> pd.DataFrame:
    """The tables of a training's checkpoints as one: checkpoint, probe, the columns of the probes, quantity, value."""
    return stacked(
        [
            table.assign(checkpoint=checkpoint, probe=probe)
            for checkpoint, profile in profiles.items()
            for probe, table in profile.tables.items()
        ]
    )


def summarise(profile: Profile) -> str:
    """How many junctions there are, how the gradient changes on its way back, and how large residuals are."""
    norms = profile.junctions["gradient norm"].dropna()
    ratios = profile.junctions["branch / shortcut"].dropna()
    text = f"{count_adds(profile)}."
    if len(norms):
        text += (
            f" From the last junction back to the first, the gradient's norm goes from {norms.iloc[-1]:.3g} to "
            f"{norms.iloc[0]:.3g}."
        )
    if len(ratios):
        text += (
            f" A residual has {ratios.median():.2g} times the norm of what its shortcut carries (median; "
            f"{ratios.min():.2g} to {ratios.max():.2g})."
        )
    return text


def count_adds(profile: Profile) -> str:
    """How many junctions there are, of which kinds, and how many other adds."""
    found = profile.junctions
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["shortcut"].value_counts().items())
    return f"{len(found)} junction{'s' * (len(found) != 1)}: {kinds}; {len(profile.adds) - len(found)} other adds"


def describe(profile: Profile) -> str:
    """A profile in text: a line for each junction, and one for each path length."""
    found = profile.junctions
    columns = {
        "depth": [str(depth) for depth in found["depth"]],
        **{name: found[name].tolist() for name in ("block", "shortcut")},
        **{name: _with_bars(found[name].tolist()) for name, _, _ in COLUMNS},
    }
    lines = [count_adds(profile), "", *_text_table(columns, right=("depth",))]
    if "path_contributions" in profile.tables:
        table = profile.tables["path_contributions"].set_index("path_length")
        size, share = (table.loc[table["quantity"] == name, "value"] for name in ("norm", "share"))
        lengths = {
            "path length": [str(k) for k in size.index],
            "gradient norm": _with_bars(size.tolist()),
            "share": [f"{value:+.3f}" for value in share],
        }
        lines += ["", *_text_table(lengths, right=("path length", "share"))]
    return "\n".join([*lines, "", BARS])


def describe_checkpoints(profiles: Mapping[str, Profile]) -> str:
    """Gradient norms and ratios over a training, in text: a line for each junction, a column for each checkpoint."""
    first, names = next(iter(profiles.values())), _some(list(profiles), SHOWN)
    lines, found = [count_adds(first)], first.junctions
    for heading, _, _ in COLUMNS:
        columns = {"depth": [str(depth) for depth in found["depth"]], "block": found["block"].tolist()}
        columns |= {name: [_number(value) for value in profiles[name].junctions[heading]] for name in names}
        lines += ["", f"{heading}, by checkpoint", "", *_text_table(columns, right=("depth", *names))]
    if len(names) < len(profiles):
        lines += ["", f"{len(names)} of {len(profiles)} checkpoints; the table has all of them"]
    return "\n".join(lines)


def _some(items: Sequence[str], most: int) -> list[str]:
    """All items, or as many as that, evenly spaced with the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def _with_bars(values: Sequence[float]) -> list[str]:
    """Each value with a bar whose length is its logarithm's distance from the power of ten below the least of them."""
    positive = [value for value in values if 0 < value < math.inf]
    low = math.ceil(math.log10(min(positive, default=1.0))) - 1
    high = max(math.floor(math.log10(max(positive, default=1.0))) + 1, low + 1)

    def bar(value: float) -> str:
        return "#" * max(1, round(BAR * (math.log10(value) - low) / (high - low))) if 0 < value < math.inf else ""

    return [f"{_number(value):>8}  {bar(value):<{BAR}}" for value in values]


def _text_table(columns: Mapping[str, Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """Lines of a table of text, the heads above; the columns of `right` end at one place, all others begin at one."""
    widths = {name: max(len(name), *map(len, cells), 0) for name, cells in columns.items()}
    rows = zip(*columns.values(), strict=True)
    return [
        "  ".join(
            cell.rjust(widths[name]) if name in right else cell.ljust(widths[name])
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in (tuple(columns), *rows)
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2e}"
