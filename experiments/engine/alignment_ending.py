"""How the experiment on the direction of gradients ends in the terminal: effects, and where networks went on to."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.alignment_effects import EFFECTS, Effects
from experiments.engine.continuation import BEFORE
from experiments.engine.ending import mean_sd, show_estimate
from experiments.engine.grid import Cell

SHOWN = (("train", "loss"), ("test", "accuracy"))


def show_effects(console: Console, found: Effects, diverged: Sequence[Cell]) -> None:
    """Depth x effect: every arm's."""
    arms = list(dict.fromkeys(arm for arm, _, _ in found))
    table = Table(title="The arm's gradient against the true one", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *arms):
        table.add_column(column)
    for depth in dict.fromkeys(depth for _, depth, _ in found):
        table.add_row(f"depth {depth}", style="bold")
        for effect in EFFECTS:
            each = (found[arm, depth, effect] for arm in arms)
            table.add_row(effect, *(show_estimate(one) if one.values else "-" for one in each))
        table.add_section()
    console.print(table)
    gone = f"; {len(diverged)} cells diverged" if diverged else ""
    console.print(
        "first, last: on one batch of training images, before the first step and after the last epoch; true: the arm "
        "that learns from the true gradient of the same function. Mean [95 % t interval], (seeds' values) where there "
        f"is none; not corrected for their number, {len(found)}{gone}\n"
    )


def show_continued(console: Console, continued: pd.DataFrame, arms: Sequence[str]) -> None:
    """Depth x arm x arm in which it goes on: train loss and test accuracy, mean ± sd over seeds."""
    table = Table(title="Where networks end, and go on to: mean ± sd", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "goes on in", *(" ".join(pair) for pair in SHOWN), "n"):
        table.add_column(column, no_wrap=True)
    for depth in sorted(continued["depth_total"].unique()):
        table.add_row(f"depth {depth}", style="bold")
        for arm in arms:
            rows = continued[(continued["depth_total"] == depth) & (continued["arm"] == arm)]
            for effect in dict.fromkeys(rows["effect"]):
                at = rows[rows["effect"] == effect]
                values = [
                    at[(at["split"] == split) & (at["quantity"] == quantity)]["value"] for split, quantity in SHOWN
                ]
                first = effect == BEFORE
                goes_on = "" if first else str(effect).removeprefix("then ")
                table.add_row(arm if first else "", goes_on, *map(mean_sd, values), str(len(values[0])))
        table.add_section()
    console.print(table)
