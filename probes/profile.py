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
from .measurements.residual_magnitudes import residual_magnitudes
from .measurements.stream_statistics import stream_statistics
from .recording import Recording, record
from .sources import first_output, one_line
from .tables import ordered

MEASUREMENTS = (gradient_norms, residual_magnitudes, contributions, stream_statistics, iterative_inference)
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
        """The adds that are junctions: block, depth, verdict (the kind of the shortcut)."""
        found = self.adds[self.adds["verdict"] != "none"]
        return found[["block", "depth", "verdict"]].astype({"depth": int}).reset_index(drop=True)

    @property
    def drawn(self) -> pd.DataFrame:
        """One table of what the figure ``profiles`` draws: gradient norms, ratios and cosines, shares of lengths."""
        sizes = self.tables["residual_magnitudes"]  # its norms of the addends have the names of the gradients' parts
        parts = [self.tables["gradient_norms"], sizes[sizes["quantity"].isin(["ratio", "cosine"])]]
        parts += [self.tables["path_contributions"]] if "path_contributions" in self.tables else []
        return ordered(pd.concat(parts, ignore_index=True))


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
        ValueError: The model fails on these inputs, hides its adds, or has no junctions.
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
        loss = output.square().mean() if labels is None else F.cross_entropy(output, labels.to(output.device))
        loss.backward(retain_graph=paths)
    tables = {probe.__name__: probe(recording) for probe in MEASUREMENTS}
    if not paths:
        return Profile(adds, tables, [f"path lengths: not taken of {count} junctions; raise --paths to have them"])
    try:
        return Profile(adds, tables | of_paths(recording), [])
    except ValueError as error:
        return Profile(adds, tables, [f"path lengths: {error}"])


def one_table(profiles: Mapping[str, Profile]) -> pd.DataFrame:
    """The tables of a training's checkpoints as one: checkpoint, probe, the columns of the probes, quantity, value."""
    parts = [
        table.assign(checkpoint=checkpoint, probe=probe)
        for checkpoint, profile in profiles.items()
        for probe, table in profile.tables.items()
    ]
    together = pd.concat(parts, ignore_index=True)
    numbers = together.columns.intersection(["depth", "path_length"])  # some probes have none
    return ordered(together.astype(dict.fromkeys(numbers, "Int64")))


def describe(profile: Profile) -> str:
    """A profile in text: a line for each junction, one for each path length, and what could not be measured."""
    found = profile.junctions
    norms = _values(profile.tables["gradient_norms"], "total").reindex(found["block"])
    ratios = _values(profile.tables["residual_magnitudes"], "ratio").reindex(found["block"])
    columns = {
        "depth": [str(depth) for depth in found["depth"]],
        "block": found["block"].tolist(),
        "shortcut": found["verdict"].tolist(),
        "gradient norm": _with_bars(norms.tolist()),
        "branch / shortcut": _with_bars(ratios.tolist()),
    }
    lines = [count_adds(profile), "", *_text_table(columns, right=("depth",))]
    if "path_contributions" in profile.tables:
        table = profile.tables["path_contributions"].set_index("path_length")
        size, share = (table.loc[table["quantity"] == name, "value"] for name in ("norm", "share"))
        spectrum = {
            "path length": [str(k) for k in size.index],
            "gradient norm": _with_bars(size.tolist()),
            "share": [f"{value:+.3f}" for value in share],
        }
        lines += ["", *_text_table(spectrum, right=("path length", "share"))]
    lines += ["", BARS]
    return "\n".join([*lines, *([""] if profile.notes else []), *profile.notes])


def count_adds(profile: Profile) -> str:
    """How many junctions there are, of which kinds, and how many other adds."""
    found = profile.junctions
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["verdict"].value_counts().items())
    return f"{len(found)} junctions: {kinds}; {len(profile.adds) - len(found)} other adds"


def describe_checkpoints(profiles: Mapping[str, Profile]) -> str:
    """Gradient norms and ratios over a training, in text: a line for each junction, a column for each checkpoint."""
    names = _some(list(profiles), SHOWN)
    first = next(iter(profiles.values()))
    lines, found = [count_adds(first)], first.junctions
    for probe, quantity, heading in (
        ("gradient_norms", "total", "norm of the gradient at the fork"),
        ("residual_magnitudes", "ratio", "branch / shortcut"),
    ):
        columns = {"depth": [str(depth) for depth in found["depth"]], "block": found["block"].tolist()}
        for name in names:
            values = _values(profiles[name].tables[probe], quantity).reindex(found["block"])
            columns[name] = [_number(value) for value in values]
        lines += ["", f"{heading}, by checkpoint", "", *_text_table(columns, right=("depth", *names))]
    if len(names) < len(profiles):
        lines += ["", f"{len(names)} of {len(profiles)} checkpoints; the table has all of them"]
    notes = dict.fromkeys(note for profile in profiles.values() for note in profile.notes)
    return "\n".join([*lines, *([""] if notes else []), *notes])


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


def _values(table: pd.DataFrame, quantity: str) -> "pd.Series[float]":
    return table[table["quantity"] == quantity].set_index("block")["value"]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2e}"
