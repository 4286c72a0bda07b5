"""How the factorial experiment ends in the terminal: outcomes, effects, one sentence, and the files written."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.effects import CEILING, EFFECTS, FACTORIAL, FLOOR, OUTCOMES, Estimate, effects, flags
from experiments.engine.grid import Cell

SHOWN = (("train", "loss"), ("train", "accuracy"), ("test", "accuracy"))


def terminal() -> Console:
    """A console wide enough for the tables where the output is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=100)


def show_outcomes(
    console: Console,
    outcomes: pd.DataFrame,
    arms: Sequence[str],
    diverged: Sequence[Cell],
    marks: dict[int, dict[str, str]],
) -> None:
    """Arm x depth: train loss, train and test accuracy (mean ± sd over seeds), n, diverged cells, floor or ceiling."""
    table = Table(title="At the end of training: mean ± sd over n seeds", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *(" ".join(pair) for pair in SHOWN), "n", "note"):
        table.add_column(column, no_wrap=column not in ("", "note"))  # numbers are never cut off
    for depth in sorted(marks):
        table.add_row(f"depth {depth}", style="bold")
        for arm in arms:
            at = outcomes[(outcomes["depth_total"] == depth) & (outcomes["arm"] == arm)]
            numbers = [at[(at["split"] == split) & (at["quantity"] == quantity)]["value"] for split, quantity in SHOWN]
            gone = sum(cell.arm == arm and cell.depth == depth for cell in diverged)
            if at.empty and not gone:  # not asked at this depth
                continue
            note = [f"{gone} diverged"] * bool(gone) + [marks[depth].get(arm, "")]
            table.add_row(arm, *map(mean_sd, numbers), str(len(numbers[0])), " ".join(note))
        table.add_section()
    console.print(table)
    console.print(
        f"floor, ceiling: test accuracy within {FLOOR} of chance, or at least {CEILING}: effects on it mislead there\n"
    )


def show_effects(console: Console, cells: pd.DataFrame, depth: int) -> None:
    """The simple effects, the main effects and the interaction at one depth, each on three outcomes."""
    by_outcome = {outcome: effects(cells, depth, outcome) for outcome in OUTCOMES}
    if not all(by_outcome.values()):
        console.print(f"depth {depth}: no effects, since no seed has finished all of {', '.join(FACTORIAL)}\n")
        return
    n = len(by_outcome[OUTCOMES[0]]["forward, backward on"].values)
    title = f"Effects of the shortcut at depth {depth}: mean [95 % t interval], paired over n = {n} seeds"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *OUTCOMES):
        table.add_column(column)
    for name in EFFECTS:
        table.add_row(name, *(show_estimate(by_outcome[outcome][name]) for outcome in OUTCOMES))
    console.print(table)
    console.print(
        "(a, b): the seeds' own values, where n < 3 or the interval runs beyond the scale; "
        "intervals are not corrected for their number\n"
    )


def clear_figures(folder: Path) -> None:
    """Take away the figures that an earlier run, with other settings perhaps, left in an experiment's folder."""
    for stale in (folder / "figures").glob("*"):
        stale.unlink(missing_ok=True)


def nothing_came_out(
    console: Console,
    tables: dict[str, pd.DataFrame],
    folder: Path,
    *,
    advice: str = "A lower --learning-rate may help.",
) -> bool:
    """Whether every cell diverged, which is then said; an earlier run's figures are gone in either case."""
    clear_figures(folder)
    if "outcomes" in tables:
        return False
    show_files(console, folder)
    console.print(f"Every cell diverged: there is nothing to compare. {advice}")
    return True


def show_files(console: Console, folder: Path) -> None:
    """Where everything was written."""
    console.print(f"Written to {folder}:", soft_wrap=True)
    for where in (folder, folder / "figures"):
        endings: dict[str, list[str]] = {}
        for file in sorted(where.glob("*.*")):
            endings.setdefault(file.stem, []).append(file.suffix[1:])
        for stem, suffixes in endings.items():
            name = (where / stem).relative_to(folder)
            console.print(
                f"  {name}.{suffixes[0] if len(suffixes) == 1 else '{' + ','.join(suffixes) + '}'}", soft_wrap=True
            )


def mean_sd(values: pd.Series) -> str:
    """`0.965 ± 0.003`; without the deviation where there is one value, `-` where there is none."""
    if values.empty:
        return "-"
    digits = 3 if values.mean() >= 0.1 else 4
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def show_estimate(found: Estimate, *, digits: int = 2, sign: bool = True) -> str:
    """`-0.38 [-0.50, -0.26]`, or the seeds' own values where there is no interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    if found.low == found.low:
        return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.mean:{form}} ({', '.join(f'{value:{form}}' for value in found.values)})"


def sentence(cells: pd.DataFrame, depth: int, *, title: str, classes: int) -> str:
    """What the numbers of one depth say of test accuracy, and what they do not."""
    found = effects(cells, depth, "test accuracy")
    if not found:
        return f"{title}, depth {depth}: nothing can be said of effects; no seed has finished {', '.join(FACTORIAL)}."
    interaction = found["interaction / gradient mismatch"]
    n, seeds = len(interaction.values), cells[cells["depth_total"] == depth]["seed"].nunique()
    lost = f" of {seeds} seeds, the others diverged" if n < seeds else ""
    said = (
        f"{title}, depth {depth}, n = {n}{lost}: test accuracy "
        f"changes by {show_estimate(found['whole shortcut'])} when a plain network gets the whole shortcut, by "
        f"{show_estimate(found['forward, backward off'])} when it gets the value without the gradient, by "
        f"{show_estimate(found['backward, forward off'])} when it gets the gradient without the value; "
    )
    marks = {arm: mark for arm, mark in flags(cells, depth, classes).items() if arm in FACTORIAL}
    if marks:
        said += f"with {', '.join(f'{arm} at the {mark}' for arm, mark in marks.items())}, "
        said += "whether the two add up cannot be read from these numbers"
    elif interaction.low > 0:
        said += "both together give more than the sum of each, as they would if a gradient only helped where it fits"
    elif interaction.high < 0:
        said += "both together give less than the sum of each"
    else:
        said += "whether the two add up is not decided at this n"
    return (
        said + ". One data set, one learning rate, one budget: this alone does not say why residual connections help."
    )
