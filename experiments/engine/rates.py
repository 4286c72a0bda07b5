"""What the search for learning rates showed: the whole curve of every arm, the best, and the order of arms at them."""

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.answer import AS_THEY_ARE
from experiments.engine.conditions import Rates
from experiments.engine.effects import FACTORIAL, effects
from experiments.engine.ending import show_estimate


def curves(search: pd.DataFrame, depth: int) -> pd.DataFrame:
    """Mean validation accuracy over the tuning seeds: a row for each arm, a column for each learning rate."""
    rows = search[(search["depth_total"] == depth) & (search["quantity"] == "accuracy")]
    wide = rows.pivot_table(index="control", columns="learning_rate", values="value")
    return wide.reindex([condition.name for condition in AS_THEY_ARE if condition.name in wide.index])


def show_search(console: Console, search: pd.DataFrame, rates: Rates) -> None:
    """Depth x arm x learning rate: validation accuracy, the best in brackets."""
    table = Table(title="Validation accuracy by learning rate, tuning seeds", box=SIMPLE_HEAD, pad_edge=False)
    tried = sorted(search["learning_rate"].unique())
    for column in ("", *(f"{rate:g}" for rate in tried)):
        table.add_column(column, no_wrap=True)
    for depth in sorted(search["depth_total"].unique()):
        table.add_row(f"depth {depth}", style="bold")
        for arm, curve in curves(search, depth).reindex(columns=tried).iterrows():
            best = rates[str(arm), int(depth)]
            table.add_row(str(arm), *(show_accuracy(curve[rate], best=rate == best) for rate in tried))
        table.add_section()
    console.print(table)
    n = search["seed"].nunique()
    console.print(f"[best], by the mean over n = {n} tuning seeds, never reported; 0: diverged\n", markup=False)


def show_accuracy(value: float, *, best: bool) -> str:
    """`0.953`, `[0.953]` for the best, nothing where that rate was not tried."""
    if value != value:
        return ""
    return f"\\[{value:.3f}]" if best else f"{value:.3f}"


def sentence(search: pd.DataFrame, cells: pd.DataFrame, rates: Rates, *, depth: int, title: str) -> str:
    """What the arms and the shortcut's parts come to at their own best rates, and how far rates move each arm."""
    at_best = cells[cells["depth_total"] == depth]
    if at_best.empty:
        return f"{title}, depth {depth}: nothing can be said, since every cell diverged. {span(search, depth)}"
    means = at_best.groupby("arm")["test accuracy"].mean()
    named = [f"{arm} {means[arm]:.3f} at {rates[arm, depth]:g}" for arm in rates_of(rates, depth) if arm in means]
    said = f"{title}, depth {depth}, n = {at_best['seed'].nunique()}: test accuracy at each arm's own best learning "
    said += f"rate is {', '.join(named)}"
    found = effects(cells, depth, "test accuracy")
    if not found:
        said += f"; there are no effects, since no seed has finished all of {', '.join(FACTORIAL)}"
    else:
        said += (
            f"; the value without the gradient is worth {show_estimate(found['forward, backward off'], digits=3)}, "
            f"the gradient without the value {show_estimate(found['backward, forward off'], digits=3)}, "
            f"both {show_estimate(found['whole shortcut'], digits=3)}"
        )
    return f"{said}. {span(search, depth)} One data set, one budget."


def rates_of(rates: Rates, depth: int) -> list[str]:
    """The arms that have a rate at a depth."""
    return [arm for arm, at in rates if at == depth]


def span(search: pd.DataFrame, depth: int) -> str:
    """From where to where each arm's validation accuracy runs, over the rates at which all were tried."""
    every = curves(search, depth).dropna(axis="columns")
    parts = [f"{arm} {curve.min():.2f} to {curve.max():.2f}" for arm, curve in every.iterrows()]
    ends = f"{every.columns.min():g} to {every.columns.max():g}"
    return f"Over rates from {ends} validation accuracy runs over {', '.join(parts)}."
