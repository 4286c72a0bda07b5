"""A small table for every figure, and what a figure has drawn, as plain numbers."""

import math
import re
from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Tick, XTick
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from figures import ARMS, caption
from figures.layer_use import PANELS

NAMES = list(ARMS)
BLOCKS, SINGLE = 4, {"stop-gradient": 4, "shortest-path": 0}  # of the sampled paths; the arms with one length alone
LIMITS = {"at-most": (0, 1, 4), "sampled": (4,)}
EPOCHS, COINS, WEIGHTS = (2, 5, 8), (0.5, 0.9), (0.1, 0.25, 0.5, 0.75)


def long(**columns: Iterable[Any]) -> pd.DataFrame:
    """A row for every combination of the entries, with a value from 0.1 to 1, the same for the same row."""
    rows = pd.DataFrame(list(product(*columns.values())), columns=list(columns))
    letters = [sum(7 * (i + 1) * ord(letter) for i, letter in enumerate(str(row))) for row in rows.values.tolist()]
    return rows.assign(value=0.1 + 0.9 * (np.array(letters, float) % 101) / 101)


def tables(
    arms: Iterable[str] = NAMES, depths: Iterable[int] = (20, 56), seeds: Iterable[int] = (0, 1, 2)
) -> dict[str, pd.DataFrame]:
    """The tables of the main experiment; networks have 4 junctions, epochs are 0, 1, 2."""
    about, measured = {"arm": arms, "depth_total": depths, "seed": seeds}, ("loss", "accuracy")
    blocks = long(**about, epoch=range(3), depth=range(4))
    blocks = blocks.assign(block=[f"layer1.{depth}" for depth in blocks["depth"]])
    sizes, arm = 10 ** (-5 * blocks["value"]), blocks["arm"]
    forward = arm.isin(["residual", "stop-gradient", "shortest-path"])
    backward = arm.isin(["residual", "gradient-only", "shortest-path"])
    gradients = {"total": sizes, "shortcut": sizes / 2 * backward, "branch": sizes / 3 * (arm != "shortest-path")}
    magnitudes = {"branch": sizes, "shortcut": 2.0 * forward, "ratio": (sizes / 2).where(forward)}
    paths = long(**about, epoch=range(3), path_length=range(5))
    alone = paths["arm"].map(
        {"stop-gradient": 4, "plain": 4, "near-identity": 4, "shortest-path": 0}
    )  # of arms with a single path
    there = alone.isna() | (alone == paths["path_length"])
    spectra = {"norm": 10 ** (-5 * paths["value"]) * there, "share": there / np.where(alone.isna(), 5, 1)}
    return {
        "outcomes": long(**about, split=("train", "validation", "test"), quantity=measured),
        "curves": long(**about, epoch=range(3), split=("train", "validation"), quantity=measured),
        "gradients": by_quantity(blocks, gradients | {"other": 0.0}),
        "magnitudes": by_quantity(blocks, magnitudes),
        "paths": by_quantity(paths, spectra),
    }


def by_quantity(rows: pd.DataFrame, values: dict[str, Any]) -> pd.DataFrame:
    """The rows once for each quantity, with its values."""
    return pd.concat([rows.assign(quantity=name, value=of) for name, of in values.items()], ignore_index=True)


def sampled(epochs: tuple[int, ...] = (0, 1, 3), depths: tuple[int, ...] = (8, 20)) -> pd.DataFrame:
    about = {"arm": ["residual", *SINGLE], "depth_total": depths, "seed": (0, 1), "epoch": epochs}
    rows = long(**about, path_length=range(BLOCKS + 1))
    k, alone = rows["path_length"], rows["arm"].map(SINGLE)
    norm = (1 + rows["seed"]) * 10.0 ** (-k * (1 + rows["epoch"]) / 4) * (alone.isna() | (alone == k))
    paths = {"path_norm": norm, "path_norm_low": 0.8 * norm, "path_norm_high": 1.2 * norm, "samples": 7}
    paths |= {"mass": norm * [math.comb(BLOCKS, branches) for branches in k.tolist()]}
    paths |= {"cancellation": pd.Series(0.5, rows.index).where(norm > 0)}
    runs = long(**about)
    bands = by_quantity(runs, {"mass_low": 1 + runs["seed"], "mass_high": 3})
    return pd.concat([by_quantity(rows, paths), bands], ignore_index=True)


def limited(
    limits: dict[str, tuple[int, ...]] = LIMITS, *, depths: tuple[int, ...] = (20,), seeds: int = 3
) -> pd.DataFrame:
    """Outcomes of networks whose gradient's paths are limited, and of three that are not (of 9 blocks)."""
    runs = [(f"{name}-{k}", name, k) for name, lengths in limits.items() for k in lengths]
    runs += [(arm, None, 9) for arm in ("residual", "stop-gradient", "plain")]
    wanted = {"seed": range(seeds), "depth_total": depths, "split": ("train", "test"), "quantity": ("loss", "accuracy")}
    parts = [long(arm=[arm], **wanted).assign(treatment=name, path_length=k) for arm, name, k in runs]
    return pd.concat(parts, ignore_index=True)


def limited_changes(*, intervals: bool = True) -> pd.DataFrame:
    limits = pd.DataFrame([(name, f"{name}-{k}", k) for name, lengths in LIMITS.items() for k in lengths])
    limits.columns = ["treatment", "arm", "path_length"]
    outcomes = pd.DataFrame({"depth_total": 20, "outcome": ("log train loss", "test accuracy")})
    rows, end = limits.merge(outcomes, "cross"), 1.0 if intervals else math.nan
    scaled = {"mean": 0.1, "low": -0.2 * end, "high": 0.3 * end}
    values: dict[str, Any] = {name: value * (1 + rows["path_length"]) for name, value in scaled.items()}
    return by_quantity(rows, values | {"n": 3, "margin": 0.25})


def doses() -> pd.DataFrame:
    """Outcomes of every way to cut a part of the shortcut's gradient, beside three arms."""
    kinds: list[tuple[str, str | None, float]] = [(f"weight {w:g}", "weight", w) for w in WEIGHTS]
    kinds += [(f"{kind} coin, {c:g}", f"{kind} coin", c) for c in COINS for kind in ("biased", "unbiased")]
    kinds += [(f"{when} epoch {e}", f"{when} epoch", e) for e in EPOCHS for when in ("until", "from")]
    kinds += [(f"stage {n}", "stage", n) for n in (1, 2, 3)]
    kinds += [(f"every {n}. block", "every n-th block", n) for n in (2, 3)]
    kinds += [(arm, None, math.nan) for arm in ("residual", "stop-gradient", "plain")]
    names = pd.DataFrame(kinds, columns=["control", "treatment", "amount"])
    names["arm"] = names["control"].where(names["treatment"].isna(), "residual")
    wanted = {"depth_total": (8,), "seed": range(3), "split": ("train", "test"), "quantity": ("accuracy", "loss")}
    return long(control=names["control"], **wanted).merge(names, on="control")


def blocks(arms: Iterable[str] = NAMES, seeds: int = 3) -> pd.DataFrame:
    """What each block does, in every panel of layer_use; plain blocks have no read-out and no attribution."""
    parts = [long(arm=arms, seed=range(seeds), statistics=("kept", "re-estimated"), epoch=[10], quantity=["whole"])]
    for panel in PANELS:
        reads = panel.quantity in ("read-out", "attribution")
        measured = [arm for arm in arms if not (reads and arm in ("plain", "gradient-only", "near-identity"))]
        about = {"quantity": [panel.quantity], "statistics": [panel.statistics or None]}
        depths = range(-1 if panel.quantity == "read-out" else 0, 4)
        if measured:
            epoch = [0 if panel.at_start else 10]
            parts.append(long(arm=measured, seed=range(seeds), epoch=epoch, depth=depths, **about))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(block=[f"layer{1 + depth // 2}.0" for depth in table["depth"].fillna(0).astype(int)])


def centres() -> pd.DataFrame:
    names = ("weight movement", "gradient at initialisation", "reset cost, BatchNorm kept")
    ends = pd.DataFrame({"quantity": ["low", "high"], "value": [0.2, 0.7]})
    keys = pd.DataFrame(list(product(NAMES, names)), columns=["arm", "outcome"])
    return pd.concat([long(arm=NAMES, outcome=names, seed=range(3), quantity=("centre",)), keys.merge(ends, "cross")])


def lesions(lesion: str) -> pd.DataFrame:
    about = {"arm": ("residual", "plain"), "depth_total": [20], "seed": (0, 1), "statistics": ("kept", "re-estimated")}
    whole = long(**about, lesion=["none"], count=[0], quantity=["error"]).assign(value=0.1)
    hurt = long(**about, lesion=[lesion], depth=range(4))
    depth = hurt["depth"]
    hurt = hurt.assign(count=1 + depth // 2, draw=depth % 2, block=[f"layer{1 + k // 2}.{k % 2}" for k in depth])
    values = {"error": 0.2 + 0.1 * depth + 0.01 * hurt["seed"], "tau": 1 - 0.1 * depth}
    return pd.concat([whole, by_quantity(hurt, values)], ignore_index=True)


def speeds() -> pd.DataFrame:
    about = {"network": ("resnet", "inception"), "arm": ("residual", "plain"), "depth_total": (20,), "seed": range(3)}
    losses = long(**about, split=("train",), quantity=("loss",), step=range(8, 20))
    steps = long(**about, split=("train",), quantity=("steps",), target=(0.5, 0.05))
    return pd.concat([losses, long(**about, split=("test",), quantity=("error",)), steps], ignore_index=True)


def networks() -> pd.DataFrame:
    wanted = {"network": ("resnet", "bottleneck", "mlp"), "arm": ("plain", "stop-gradient", "residual")}
    outcomes = (("test", "error"), ("train", "loss"))
    parts = [long(**wanted, seed=range(3), split=[split], quantity=[quantity]) for split, quantity in outcomes]
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(depth_total=np.where(rows["network"] == "bottleneck", 11, 8))


CONTROLS = {"residual": "residual", "plain": "plain", "true norms": "stop-gradient", "frozen": "residual"}


def conditions() -> pd.DataFrame:
    rows = long(control=CONTROLS, depth_total=(8, 14), seed=range(3), split=("test",), quantity=("accuracy",))
    return rows.assign(arm=rows["control"].map(CONTROLS))


def gaps() -> pd.DataFrame:
    about = {"control": CONTROLS, "depth_total": (8,), "outcome": ("test error", "log train loss")}
    ends = {"R": 0.5, "R low": 0.25, "R high": 0.75, "n": 3}
    rows = long(**about, quantity=ends)
    return rows.assign(arm=rows["control"].map(CONTROLS), value=rows["quantity"].map(ends))


def copies() -> pd.DataFrame:
    about = {"arm": ("residual", "plain"), "depth_total": (2, 8), "seed": range(3)}
    errors = long(**about, epoch=(0, 1, 2), split=("test", "validation"), quantity=("error",))
    return pd.concat([errors, long(**about, epoch=(0, 2), split=("-",), quantity=("change",))], ignore_index=True)


def insertions() -> pd.DataFrame:
    about = {"arm": ("residual", "plain"), "depth_total": (20, 32), "effect": ("identity", "random")}
    rows = []
    for outcome in ("log train loss", "test accuracy", "change first", "change last"):
        for quantity, value in {"mean": 0.1, "low": -0.2, "high": 0.3, "n": 3, "margin": 0.25}.items():
            rows.append(long(**about, outcome=[outcome], quantity=[quantity], draw=[-1]).assign(value=value))
        rows.append(long(**about, outcome=[outcome], quantity=["seed"], draw=range(3)))
    table = pd.concat(rows, ignore_index=True)
    worse = (table["quantity"] == "margin") & (table["outcome"] == "test accuracy")
    return table.assign(value=table["value"].mask(worse, -0.02))


FIRST_WEIGHTS = {
    "residual": "he", "plain": "he", "stop-gradient": "he", "stop-gradient's norms, true direction": "he",
    "residual, near-identity": "near-identity", "value alone, near-identity": "near-identity",
    "plain, near-identity": "near-identity", "plain, looks-linear": "looks-linear",
    "plain, delta-orthogonal": "delta-orthogonal",
}  # fmt: skip


def answers() -> pd.DataFrame:
    """Errors at three budgets on digits, at one on CIFAR-10, and shares."""
    digits = long(data=["digits"], control=FIRST_WEIGHTS, step=(80, 400, 2000), seed=range(3))
    cifar = long(data=["CIFAR-10"], control=("residual", "plain", "plain, near-identity"), step=[780], seed=range(2))
    errors = pd.concat([cifar, digits], ignore_index=True)
    errors = errors.assign(first_weights=errors["control"].map(FIRST_WEIGHTS), budget=errors["step"] // 80)
    found = [
        share("digits", "short paths", 80, (0.6, 0.45, 0.75), "contributes"),
        share("digits", "conditioning", 400, (0.91, 0.88, 1.9), "explains most"),
        share("digits", "conditioning", 80, (0.91, 0.88, 0.94), "explains most"),
        share("CIFAR-10", "conditioning", 780, (np.nan, np.nan, np.nan), "no gap"),
    ]
    return pd.concat([errors, *found], ignore_index=True).assign(outcome="test error")


def share(data: str, effect: str, step: int, values: tuple[float, float, float], reading: str) -> pd.DataFrame:
    about = {"data": data, "effect": effect, "step": step, "reading": reading, "outcome": "test error"}
    return pd.DataFrame({**about, "quantity": ("estimate", "low", "high"), "value": values})


def answer_losses() -> pd.DataFrame:
    rows = long(data=["digits"], control=FIRST_WEIGHTS, budget=[1], step=(8, 40, 80), seed=range(3))
    return rows.assign(first_weights=rows["control"].map(FIRST_WEIGHTS), window=8)


def profile() -> pd.DataFrame:
    values = 10.0 ** -np.arange(3)
    rows = dict.fromkeys(("total", "shortcut", "branch", "ratio"), values) | {"other": 0.0}
    return by_quantity(pd.DataFrame({"depth": range(3)}), rows)


def checkpoints() -> pd.DataFrame:
    of_one = profile()
    return pd.concat([of_one.assign(checkpoint=f"step_{k}.pt", value=of_one["value"] / k) for k in (1, 2, 3)])


def compared() -> pd.DataFrame:
    """Two networks' gradient norms and ratios of four blocks, and one more block that b alone has."""
    found = []
    for measurement, quantity in (("gradient_norms", "total"), ("residual_magnitudes", "ratio")):
        rows = long(block=[f"layer1.{k}" for k in range(4)], side=("a", "b"), quantity=[quantity])
        wide = rows.pivot(index="block", columns="side", values="value")
        ratios = (wide["b"] / wide["a"]).rename("value").reset_index().assign(side="ratio", quantity=quantity)
        alone = pd.DataFrame({"block": ["layer2.0"], "side": "b", "quantity": quantity, "value": 0.3})
        found.append(pd.concat([rows, ratios, alone]).assign(measurement=measurement))
    table = pd.concat(found, ignore_index=True)
    return table.assign(depth=[{"layer1": 0, "layer2": 4}[b[:6]] + int(b[7:]) for b in table["block"]])


def responses(quantity: str, **more: Iterable[Any]) -> pd.DataFrame:
    return long(arm=("plain", "residual"), depth_total=(8, 20, 56), seed=range(3), quantity=[quantity], **more)


def aligned(*quantities: str, **more: Iterable[Any]) -> pd.DataFrame:
    return long(arm=("plain", "gradient-only"), depth_total=(8, 20), seed=range(3), quantity=quantities, **more)


def correlations() -> pd.DataFrame:
    """Four measurements and a baseline, one without a value, and eight networks of four families."""
    names = ("Jacobian of the stream: size", "mean path length", "stream: rank", "nothing", "depth")
    quantities = ("rho", "low", "high", "family low", "family high", "held out")
    found = long(measurement=names, quantity=quantities).assign(treatment="measurement")
    found["value"] = np.cos(found["value"] * np.arange(len(found)))
    found.loc[found["measurement"] == "nothing", "value"] = np.nan
    found.loc[found["measurement"] == "depth", "treatment"] = "baseline"
    families = pd.DataFrame({"control": ["a", "b", "c", "d"], "arm": ["plain", "residual", "plain", "stop-gradient"]})
    families["first_weights"] = ["he", "he", "near-identity", "he"]
    sizes = long(
        control=families["control"], depth_total=(8, 56), width=[8], measurement=names, quantity=("measured", "outcome")
    )
    return pd.concat([found, sizes.merge(families, on="control")], ignore_index=True)


MAIN = tables()
ERRORS = {"split": ("validation",), "quantity": ("accuracy",)}
# For every figure but the saliency maps, which are drawn from arrays.
EXAMPLES: dict[str, pd.DataFrame] = {
    "accuracy_by_depth": MAIN["outcomes"],
    "alignment": aligned("cosine", "norm ratio", epoch=(0, 1, 2), depth=(0, 1, 2, np.nan)),
    "stream": aligned("effective_rank", "cosine", "loss", epoch=(0, 1, 2), depth=(0, 1, 2)),
    "alignment_over_epochs": aligned("cosine", "uphill share", epoch=(1, 2, 3)),
    "answer": answers(),
    "answer_losses": answer_losses(),
    "budget": long(
        arm=NAMES, depth_total=(8, 14), seed=range(3), budget=(1, 3, 10), split=("train", "test"), quantity=["accuracy"]
    ),
    "checkpoints": checkpoints(),
    "compare": compared(),
    "conditions": conditions(),
    "copying": copies(),
    "degradation": responses("error", split=("train", "test"), epoch=(1, 2, 3)),
    "depth_centres": centres(),
    "dose_and_timing": doses(),
    "ensemble": long(
        arm=["residual"], depth_total=(8, 14, np.nan), seed=range(3), count=[1], quantity=("top-1 error", "top-5 error")
    ),
    "explanations": correlations(),
    "gap_closed": gaps(),
    "gradient_norms": MAIN["gradients"],
    "gradient_split": MAIN["gradients"],
    "insertion": insertions(),
    "interaction": MAIN["outcomes"],
    "layer_responses": responses("std", depth=(0, 1, 2, 3)),
    "layer_use": blocks(),
    "learning_curves": MAIN["curves"],
    "learning_rates": long(
        control=NAMES, depth_total=(8, 14), seed=(100, 101), learning_rate=(0.01, 0.1, 1), **ERRORS
    ),
    "lesions_by_block": lesions("delete"),
    "lesions_by_count": lesions("delete at random"),
    "path_lengths": MAIN["paths"],
    "profiles": profile(),
    "residual_magnitudes": MAIN["magnitudes"],
    "sampled_paths": sampled(),
    "short_path_changes": limited_changes(),
    "short_paths": limited(),
    "training_speed": speeds(),
    "variants": networks(),
}  # fmt: skip


def pick(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def geometric(rows: pd.DataFrame, by: str) -> "pd.Series[float]":
    return rows.groupby(by)["value"].apply(lambda values: np.prod(values) ** (1 / len(values)))


# What was drawn


def lines_of(axis: Axes, arm: str) -> tuple[list[Line2D], list[Line2D]]:
    """The arm's lines in a panel, known by their colour: the seeds' thin ones and the means' thick ones."""
    lines = [line for line in axis.lines if to_hex(line.get_color()) == to_hex(ARMS[arm].colour)]
    thin = [line for line in lines if line.get_linewidth() < 1]
    return thin, [line for line in lines if line.get_linewidth() >= 1]


def dots_of(axis: Axes, arm: str, *, horizontal: bool = False) -> list[float]:
    """The values of the arm's small points, of all categories."""
    found: list[float] = []
    for dots in axis.collections:
        if isinstance(dots, PathCollection):
            offsets = np.asarray(dots.get_offsets(), float)
            colours = [to_hex(colour) for colour in np.broadcast_to(dots.get_facecolor(), (len(offsets), 4))]
            own = np.array([colour == to_hex(ARMS[arm].colour) for colour in colours], bool)
            found += offsets[own, 0 if horizontal else 1].tolist()
    return found


def means_of(axis: Axes, arm: str, *, horizontal: bool = False) -> list[float]:
    """The values of the arm's large markers, by category."""
    own = [k for k in axis.lines if to_hex(k.get_color()) == to_hex(ARMS[arm].colour) and k.get_markersize() == 4.5]
    data = [np.asarray(line.get_xdata() if horizontal else line.get_ydata(), float) for line in own]
    return np.concatenate(data).tolist()


def xy(line: Line2D) -> "pd.Series[float]":
    """A line's points as a series, y against x, without gaps."""
    return pd.Series(np.asarray(line.get_ydata(), float), np.asarray(line.get_xdata(), float)).dropna()


def drawn_y(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata(), float).tolist()


def texts(drawn: Any) -> str:
    """The words of a figure and of its caption, or those of a panel or a legend alone."""
    found = [text.get_text() for text in drawn.findobj(Text)]
    return "\n".join(found + ([caption_of(drawn.axes[0])] if isinstance(drawn, Figure) else []))


def caption_of(axes: Any) -> str:
    """The caption with small letters at the beginning of sentences, as figures write them."""
    return re.sub(r"(^|\. )([A-Z])(?=[a-z ])", lambda found: found[1] + found[2].lower(), caption(axes))


def close(drawn: "pd.Series[float]", expected: "pd.Series[float]") -> None:
    np.testing.assert_allclose(drawn.index.to_numpy(float), expected.index.to_numpy(float))
    np.testing.assert_allclose(drawn.to_numpy(float), expected.to_numpy(float), rtol=1e-12)


def shown_texts(artist: Artist) -> list[Text]:
    """The texts below an artist that are drawn: no hidden ones, no ticks outside of their axis."""
    if not artist.get_visible():
        return []
    if isinstance(artist, Tick):
        axis = artist.axes.xaxis if isinstance(artist, XTick) else artist.axes.yaxis
        low, high = sorted(axis.get_view_interval())
        if not low - 1e-9 * abs(low) <= artist.get_loc() <= high + 1e-9 * abs(high):
            return []
    children = artist.texts if isinstance(artist, Axes) and not artist.axison else artist.get_children()
    own = [artist] if isinstance(artist, Text) and artist.get_text().strip() else []
    return list(dict.fromkeys([*own, *(text for child in children for text in shown_texts(child))]))


def suits_a_paper(axes: Any, *, width: float | None = None, least: float = 7) -> None:
    """The page's width (by default that of the screen), one font, nothing smaller than `least` points, no text over
    another or over the edge, panels in which there is room for the data, each with a label of y that fits beside it."""
    figure = axes.flat[0].get_figure(root=True)
    figure.draw_without_rendering()
    assert math.isclose(figure.get_figwidth(), width or (5.5 if axes.shape[1] > 1 else 3.3), abs_tol=0.01)
    boxes = [(text, text.get_window_extent()) for text in shown_texts(figure)]
    assert min(float(text.get_fontsize()) for text, _ in boxes) >= least
    assert len({text.get_fontname() for text, _ in boxes}) == 1
    for (one, box), (other, its) in combinations(boxes, 2):
        apart = box.x1 <= its.x0 or its.x1 <= box.x0 or box.y1 <= its.y0 or its.y1 <= box.y0
        assert apart, (one.get_text(), other.get_text())
    for text, box in boxes:  # a pixel, of 200 to the inch, for rounding
        assert min(box.x0, box.y0) > -1, text.get_text()
        assert box.x1 < figure.bbox.x1 + 1, text.get_text()
        assert box.y1 < figure.bbox.y1 + 1, text.get_text()
    rows: dict[int, float] = {}
    for axis in axes.flat:
        row = axis.get_subplotspec().rowspan.start
        rows[row] = max(rows.get(row, 0), axis.get_window_extent().height)
    assert sum(rows.values()) >= 0.45 * figure.bbox.height
