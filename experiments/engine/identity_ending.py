"""How the experiment on identities ends: figures, two tables in the terminal, and one sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import figures
from experiments.engine.data import Dataset
from experiments.engine.effects import Estimate, decide
from experiments.engine.ending import clear_figures, mean_sd, show_estimate, show_files, terminal
from experiments.engine.grid import Cell, write_aside
from experiments.engine.identity_effects import (
    FACTOR,
    NEAR_ZERO,
    Insertion,
    copying_table,
    harder,
    inserted_changes,
    insertion_table,
    insertions,
    is_harder,
)
from experiments.engine.recovery import MARGINS, Comparison

WORDS = {"recovered": "keeps up", "falls short": "is worse", "undecided": "is undecided"}
CLOSED = (
    "stop-gradient, identity: at first no gradient passes a block whose branch gives zeros, so that what lies below it "
    "stands still while the shallow network goes on learning.\n"
)
DEFINITION = (
    "worse: the whole 95 % paired t interval of the change lies beyond a doubled train loss, or beyond a test accuracy "
    f"lower by {MARGINS['test accuracy']}, or a seed diverged; keeps up: both lie within"
)


def finish(
    tables: dict[str, pd.DataFrame], diverged: list[Cell], dataset: Dataset, arms: Sequence[str], folder: Path
) -> None:
    """Draw the figures, and print what came out."""
    console = terminal()
    clear_figures(folder)
    done = set(tables["outcomes"]["experiment"]) if "outcomes" in tables else set()
    said = []
    if "copying" in done:
        copying = copying_table(tables)
        write_aside(folder / "copying.csv", copying)
        figures.save(figures.copying(copying), copying, folder / "figures", "copying")
        show_copying(console, copying, arms)
        said.append(copying_sentence(harder(copying)))
    if "insertion" in done:
        found, changes = (
            insertions(tables["outcomes"], len(dataset.splits["test"][1])),
            inserted_changes(tables["blocks"]),
        )
        rows = insertion_table(found, changes)
        if len(rows):
            write_aside(folder / "insertion.csv", rows)
            figures.save(figures.insertion(rows), rows, folder / "figures", "insertion")
        show_insertions(console, found, changes)
        said.append(insertion_sentence(found, changes))
    for cell in diverged:
        console.print(
            f"diverged: {cell.experiment} {cell.arm}, depth {cell.depth}, seed {cell.seed}, {cell.settings['effect']}"
        )
    show_files(console, folder)
    if not said:
        console.print("Every cell diverged: there is nothing to compare. Lower --rates and --learning-rate may help.")
        return
    console.print(f"{dataset.title}: {'; '.join(said)}. One data set, one budget.")


def show_copying(console: Console, copying: pd.DataFrame, arms: Sequence[str]) -> None:
    """Of each arm and number of blocks: test error and what a block changes, first and last; the rate."""
    shown = Table(title="Copying the input: mean ± sd over n seeds", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("blocks", "error first", "error last", "change first", "change last", "rate", "n"):
        shown.add_column(column, no_wrap=True)
    last = copying["epoch"].max()
    for arm in arms:
        shown.add_row(arm, style="bold")
        for depth in sorted(copying.loc[copying["arm"] == arm, "depth_total"].unique()):
            rows = copying[(copying["arm"] == arm) & (copying["depth_total"] == depth)]
            errors = rows[(rows["quantity"] == "error") & (rows["split"] == "test")]
            changes = rows[rows["quantity"] == "change"]
            numbers = [
                mean_sd(part.loc[part["epoch"] == at, "value"]) for part in (errors, changes) for at in (0, last)
            ]
            rate = rows["effect"].iloc[0].split()[-1]
            shown.add_row(f"{depth // 2}", *numbers, rate, str(rows["seed"].nunique()))
    console.print(shown)
    console.print(
        "error: mean squared, relative to the target's variance, on test images; change: by a block, ‖F(x)‖/‖x‖ where "
        "the shortcut's value goes forward, else ‖B(x)-x‖/‖x‖; mean over blocks; rates chosen on validation images\n"
    )


def show_insertions(
    console: Console,
    found: dict[Insertion, Comparison],
    changes: dict[Insertion, tuple[Estimate, Estimate]],
) -> None:
    """Each deeper network against the shallow one, and what its inserted blocks change."""
    title = "Insertion: change from the shallow network that went on, mean [95 % t interval], paired by seed"
    shown = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *MARGINS, "n", "it", "a block changes"):
        shown.add_column(column, no_wrap=True)
    for arm in dict.fromkeys(arm for arm, _, _ in found):
        shown.add_row(arm, style="bold")
        for (_, kind, depth), each in ((key, each) for key, each in found.items() if key[0] == arm):
            numbers = [show_estimate(each.changes[outcome]) if each.changes else "-" for outcome in MARGINS]
            both = changes.get((arm, kind, depth))
            sizes = f"{both[0].mean:.3f} to {both[1].mean:.3f}" if both else "-"
            shown.add_row(f"{kind}, {depth}", *numbers, str(each.pairs), WORDS[each.verdict], sizes)
    console.print(shown)
    closed = [arm for arm, kind, _ in found if arm == "stop-gradient" and kind == "identity"]
    note = CLOSED if closed else ""
    console.print(f"{DEFINITION}.\n{note}Intervals are not corrected for their number\n")


def copying_sentence(found: dict[int, Estimate]) -> str:
    """For which numbers of blocks the identity is harder for plain stacks than for residual ones."""
    if not found:
        return "copying needs the arms plain and residual, to be compared"
    parts = [f"{is_harder(of)} at {depth // 2} (error {factor(of)} times)" for depth, of in sorted(found.items())]
    return (
        f"against residual stacks, the identity is for plain ones, by number of blocks, {', '.join(parts)}; harder if "
        f"the whole interval lies above {FACTOR:g} times, not harder if below"
    )


def factor(found: Estimate) -> str:
    """An estimate of a log10 as a factor: `85 [40, 181]`, or the seeds' own factors where there is no interval."""
    if found.low == found.low:
        return f"{10**found.mean:.3g} [{10**found.low:.3g}, {10**found.high:.3g}]"
    return f"{10**found.mean:.3g} ({', '.join(f'{value:.3g}' for value in np.power(10, found.values))})"


def insertion_sentence(found: dict[Insertion, Comparison], changes: dict[Insertion, tuple[Estimate, Estimate]]) -> str:
    """Which networks insertion harms, and whether what inserted blocks change in residual ones is near zero."""
    parts = []
    for arm in dict.fromkeys(arm for arm, _, _ in found):
        depths: dict[tuple[str, str], list[str]] = {}
        for (_, kind, depth), of in ((key, of) for key, of in found.items() if key[0] == arm):
            depths.setdefault((WORDS[of.verdict], kind), []).append(str(depth))
        verdicts = [f"{word} with {kind} blocks at {' and '.join(at)}" for (word, kind), at in depths.items()]
        parts.append(f"{arm} {', '.join(verdicts)}")
    ends = [
        f"{decide(last, NEAR_ZERO, ('not near zero', 'near zero'))} with {kind} blocks at {depth} "
        f"({show_estimate(last, sign=False)} of their input's norm, {first.mean:.2f} at first)"
        for (arm, kind, depth), (first, last) in changes.items()
        if arm == "residual"
    ]
    residuals = f"; residuals of inserted blocks end {', '.join(ends)}, near zero if below {NEAR_ZERO}"
    return f"against the shallow network, by layers with inserted blocks, {', '.join(parts)}" + residuals * bool(ends)
