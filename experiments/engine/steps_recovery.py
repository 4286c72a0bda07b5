"""How much of the gap in steps to a training loss an arm closes."""

from collections.abc import Iterator

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.answer import PLAIN, RESIDUAL
from experiments.engine.budgets import runs
from experiments.engine.condition_ending import show_recovery
from experiments.engine.score import Recovery, recovery
from models import ARMS
from probes.tables import table


def steps_recovery(rows: pd.DataFrame, arm: str, target: float) -> Recovery | None:
    """R of the first step at a training loss, paired by seed, of one depth and budget; None where a seed of the arm, of
    plain or of residual does not get there: a censored step has no mean."""
    of_target = rows[rows["target"] == target].pivot(index="seed", columns="arm", values="value")
    needed = [PLAIN, arm, RESIDUAL]
    if not set(needed) <= set(of_target.columns) or of_target[needed].isna().any(axis=None):
        return None
    return recovery(*(of_target[each].to_numpy() for each in needed))


def every_recovery(steps: pd.DataFrame) -> Iterator[tuple[int, int, str, float, Recovery | None]]:
    """Depth, budget, arm, target, R."""
    for depth, budget, rows in runs(steps):
        for arm in (each for each in ARMS if each in set(rows["arm"])):
            for target in steps["target"].unique():
                yield depth, budget, arm, float(target), steps_recovery(rows, arm, float(target))


def steps_recovery_table(steps: pd.DataFrame) -> pd.DataFrame:
    """R of steps as a long table: depth_total, budget, arm, target, quantity (R, low, high), value; NaN for none."""
    nan = float("nan")
    return table(
        {"depth_total": depth, "budget": budget, "arm": arm, "target": target, "quantity": quantity, "value": value}
        for depth, budget, arm, target, found in every_recovery(steps)
        for quantity, value in zip(
            ("R", "low", "high"), (found.mean, found.low, found.high) if found else (nan, nan, nan), strict=True
        )
    )


def show_steps_recovery(console: Console, steps: pd.DataFrame) -> None:
    """Depth x budget x arm: R of the steps to each training loss."""
    every = {(depth, budget, arm, target): found for depth, budget, arm, target, found in every_recovery(steps)}
    targets = list(dict.fromkeys(target for *_, target in every))
    shown = Table(title="How much of the gap in steps is closed", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *(f"R, steps to loss {target:g}" for target in targets)):
        shown.add_column(column, no_wrap=True)
    for depth, budget in dict.fromkeys(key[:2] for key in every):
        shown.add_row(f"depth {depth}, x {budget}", style="bold")
        for arm in dict.fromkeys(key[2] for key in every if key[:2] == (depth, budget)):
            found = [every[depth, budget, arm, target] for target in targets]
            shown.add_row(arm, *("censored" if each is None else show_recovery(each) for each in found))
        shown.add_section()
    console.print(shown)
    console.print(
        "R = (plain - arm) / (plain - residual), paired by seed; Fieller's 95 % interval; censored: a seed of the arm, "
        f"of plain or of residual does not get there. Not corrected for their number, {len(every)}\n"
    )
