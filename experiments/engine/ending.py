"""How the factorial experiment ends in the terminal: outcomes, effects, one sentence, and the files written."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.engine.effects import CEILING, EFFECTS, FACTORIAL, FLOOR, OUTCOMES, Estimate, effects, flags
from experiments.engine.grid import Cell

SHOWN = (("train", "loss"), ("train", "accuracy"), ("test", "accuracy"))


def show_outcomes(
    console: Console,
    outcomes: pd.DataFrame,
    arms: Sequence[str],
    diverged: Sequence[Cell],
    marks: dict[int, dict[str, str]],
) -> None:
    """Arm x depth: train loss, train and test accuracy (mean ± sd over seeds), n, diverged cells, floor or ceiling."""
    table = Table(title="Outcomes at the end of training: mean ± sd over seeds")
    for column in ("depth", "arm", *(" ".join(pair) for pair in SHOWN), "n", "diverged", "test accuracy at"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for depth in sorted(marks):
        for arm in arms:
            at = outcomes[(outcomes["depth_total"] == depth) & (outcomes["arm"] == arm)]
            numbers = [at[(at["split"] == split) & (at["quantity"] == quantity)]["value"] for split, quantity in SHOWN]
            gone = sum(cell.arm == arm and cell.depth == depth for cell in diverged)
            cells = [mean_sd(values) for values in numbers]
            table.add_row(str(depth), arm, *cells, str(len(numbers[0])), str(gone or ""), marks[depth].get(arm, ""))
        table.add_section()
    console.print(table)
    console.print(
        f"floor: within {FLOOR} of chance; ceiling: {CEILING} or more. There effects on accuracy are cut short.",
        highlight=False,
    )


def show_effects(console: Console, cells: pd.DataFrame, depth: int) -> None:
    """The simple effects, the main effects and the interaction at one depth, each on three outcomes."""
    by_outcome = {outcome: effects(cells, depth, outcome) for outcome in OUTCOMES}
    if not all(by_outcome.values()):
        console.print(f"depth {depth}: no effects, since no seed has all four arms {', '.join(FACTORIAL)} finished")
        return
    n = len(by_outcome[OUTCOMES[0]]["interaction / gradient mismatch"].values)
    title = f"Effects at depth {depth}, paired by seed: mean [95 % t interval], n = {n}"
    table = Table(title=title, caption="points alone: under three seeds, or an interval beyond the scale")
    for column in ("effect of the", *OUTCOMES):
        table.add_column(column)
    for index, name in enumerate(EFFECTS):
        if index in (4, 6):
            table.add_section()
        table.add_row(name, *(show_estimate(by_outcome[outcome][name]) for outcome in OUTCOMES))
    console.print(table)


def show_files(console: Console, files: Sequence[Path]) -> None:
    """Where everything was written."""
    console.print("Written:")
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)


def mean_sd(values: pd.Series) -> str:
    """`0.97 ± 0.01`; without the deviation where there is one value, `-` where there is none."""
    if values.empty:
        return "-"
    return f"{values.mean():.3g}" + (f" ± {values.std():.2g}" if len(values) > 1 else "")


def show_estimate(found: Estimate) -> str:
    """`-0.38 [-0.50, -0.26]`, or the points where there is no interval."""
    if found.low == found.low:
        return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"{found.mean:+.2f} (points {', '.join(f'{value:+.2f}' for value in found.values)})"


def sentence(cells: pd.DataFrame, depth: int, *, title: str, classes: int) -> str:
    """What the numbers of one depth say of test accuracy, and what they do not."""
    found = effects(cells, depth, "test accuracy")
    if not found:
        return (
            f"At depth {depth} the four arms of the factorial did not all finish: nothing can be said of its effects."
        )
    value = found["forward shortcut, without its gradient"]
    gradient = found["backward shortcut, without its value"]
    interaction = found["interaction / gradient mismatch"]
    whole = found["forward shortcut, with its gradient"].mean + gradient.mean  # residual - plain
    said = (
        f"{title}, depth {depth}, n = {len(value.values)}: test accuracy changes by {whole:+.2f} when a plain network gets "
        f"the whole shortcut, by {show_estimate(value)} when it gets the value without the gradient, by "
        f"{show_estimate(gradient)} when it gets the gradient without the value; "
    )
    if interaction.low > 0:
        said += "both together give more than the sum of each, as they would if a gradient only helped where it fits"
    elif interaction.high < 0:
        said += "both together give less than the sum of each"
    else:
        said += "whether the two add up is not decided at this n"
    marks = flags(cells, depth, classes)
    if marks:
        said += f"; at floor or ceiling: {', '.join(f'{arm} ({mark})' for arm, mark in marks.items())}"
    return (
        said + ". One data set, one learning rate, one budget: this alone does not say why residual connections help."
    )
