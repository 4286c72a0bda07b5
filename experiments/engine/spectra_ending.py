"""How the experiment on path lengths ends in the terminal: its bands, and one sentence."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.spectra import VEIT

COLUMNS = ("epoch", "sampled mass", "norms of exact sums", "log10 of path norm, per branch", "R²", "n")


def show_bands(console: Console, bands: pd.DataFrame, arms: Sequence[str]) -> None:
    """Arm x epoch: the bands of lengths that hold 95 %, and how the norms of single paths fall."""
    table = Table(title="Path lengths that hold 95 %: ends of the central band, mean over n seeds", box=SIMPLE_HEAD)
    for column in ("", *COLUMNS):
        table.add_column(column)
    for depth, at_depth in bands.groupby("depth_total"):
        table.add_row(f"depth {depth}", style="bold")
        for arm in arms:
            for epoch, rows in at_depth[at_depth["arm"] == arm].groupby("epoch"):
                wide = rows.pivot(index="seed", columns="quantity", values="value")
                table.add_row(arm, f"{epoch}", *_numbers(wide), str(len(wide)))
    console.print(table)
    console.print(
        "sampled mass: mean norm along single paths times their number, which ignores that paths cancel; the norms of "
        "exact sums do not add up to the gradient's norm either: two bands of two quantities\n"
    )


def _numbers(wide: pd.DataFrame) -> tuple[str, ...]:
    mean, spread = wide.mean(), wide.std()
    slope = f"{mean['slope']:+.3f}" + (f" ± {spread['slope']:.3f}" if len(wide) > 1 else "")
    falls = (slope, f"{mean['fit']:.2f}") if mean["slope"] == mean["slope"] else ("-", "-")
    return (band(wide, "mass"), band(wide, "norm"), *falls)


def band(wide: pd.DataFrame, name: str) -> str:
    """`5.3 to 12.7`, a column each of a seed's own ends; `27 alone` where both are one length for every seed."""
    low, high = wide[f"{name}_low"].dropna(), wide[f"{name}_high"].dropna()
    if low.empty:
        return "-"
    if low.min() == high.max():
        return f"{low.min():.0f} alone"
    return f"{low.mean():.3g} to {high.mean():.3g}"


def sentence(tables: dict[str, pd.DataFrame], depth: int, *, title: str) -> str:
    """What the numbers of one depth say of the residual network, and what they do not."""
    bands = tables["bands"]
    rows = bands[(bands["depth_total"] == depth) & (bands["arm"] == "residual")]
    if rows.empty:
        return f"{title}, depth {depth}: nothing can be said, since the residual arm was left out."
    sampled = tables["sampled"]
    sampled = sampled[(sampled["depth_total"] == depth) & (sampled["arm"] == "residual")]
    blocks, walked = sampled["path_length"].max(), sampled.loc[sampled["quantity"] == "samples", "value"].max()
    parts = []
    for epoch, at_epoch in rows.groupby("epoch"):
        wide = at_epoch.pivot(index="seed", columns="quantity", values="value")
        when = "at initialisation" if epoch == 0 else f"after epoch {epoch}"
        parts.append(f"{band(wide, 'mass')} branches {when}")
    return (
        f"{title}, depth {depth} ({blocks} blocks), n = {rows['seed'].nunique()}, {walked:.0f} paths a length: in the "
        f"residual network 95 % of the sampled mass lies at {', '.join(parts)}. {VEIT}: another network and data set, "
        "no target."
    )


def bands_sentence(bands: pd.DataFrame, junctions: int, samples: int) -> str:
    """What one network's spectra come to."""
    wide = bands.pivot_table(index=lambda _: 0, columns="quantity", values="value", dropna=False)
    slope, fit = wide["slope"].item(), wide["fit"].item()
    falls = f"; log10 of the path norm changes by {slope:+.3f} a branch (R² {fit:.2f})" if slope == slope else ""
    return (
        f"path lengths 0 to {junctions}: 95 % of the sampled mass lies at {band(wide, 'mass')} branches ({samples} "
        f"paths a length), of the exact sums' norms at {band(wide, 'norm')}{falls}. {VEIT}"
    )
