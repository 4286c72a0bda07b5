"""How an experiment on several networks ends in the terminal: errors, differences, He et al. 2016's, one sentence."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.ending import mean_sd, show_estimate
from experiments.engine.grid import Cell
from experiments.engine.network_effects import FIRST_TABLE, MARGIN, REFERENCE, Effects, verdict


def show_errors(
    console: Console, drawn: pd.DataFrame, arms: Sequence[str], depths: dict[str, int], diverged: Sequence[Cell]
) -> None:
    """Network x arm: test error, with training loss in brackets, and how many cells diverged."""
    title = "Test error (training loss) at the end: mean ± sd, mean, over seeds"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "depth", *arms, "note"):
        table.add_column(column, no_wrap=True)
    for network, depth in depths.items():
        rows = drawn[drawn["network"] == network]
        gone = sum(cell.settings["network"] == network for cell in diverged)
        shown = [error_and_loss(rows[rows["arm"] == arm]) for arm in arms]
        table.add_row(network, str(depth), *shown, f"{gone} diverged" if gone else "")
    console.print(table)


def error_and_loss(rows: pd.DataFrame) -> str:
    """`0.039 ± 0.003 (0.0021)`."""
    error, loss = (rows[rows["quantity"] == quantity]["value"] for quantity in ("error", "loss"))
    return "-" if error.empty else f"{mean_sd(error)} ({loss.mean():.2g})"


def show_differences(console: Console, found: Effects) -> None:
    """Network x difference of test errors between arms, with intervals."""
    if not found:
        return
    effects = list(dict.fromkeys(effect for _, effect in found))
    table = Table(title="Differences of test error: mean [95 % t interval]", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", *effects):
        table.add_column(column, no_wrap=True)
    for network in dict.fromkeys(network for network, _ in found):
        own = [found.get((network, effect)) for effect in effects]
        table.add_row(network, *(show_estimate(each) if each else "" for each in own))
    console.print(table)


def show_against_paper(console: Console, against: Effects) -> None:
    """The shortcuts of He et al. 2016, Table 1, against the identity: here and there."""
    table = Table(title=f"Residual networks against {REFERENCE}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "difference of test error", f"He et al. 2016: error, % ({REFERENCE}: {FIRST_TABLE[REFERENCE]})"):
        table.add_column(column, no_wrap=True)
    for (network, _), each in against.items():
        if network in FIRST_TABLE:
            table.add_row(network, show_estimate(each), FIRST_TABLE[network])
    if table.row_count:
        console.print(table)
        console.print("Theirs: 110 layers, CIFAR-10, 64,000 steps. Gates begin with bias 0, there and here.\n")


def answer(question: str, found: Effects, effect: str) -> str:
    """`Question: yes in A, B; no in C; undecided in D.`, of those that there are."""
    parts = []
    for word, key in (("yes", "above"), ("no", "below"), ("undecided", "undecided")):
        names = [network for (network, its), each in found.items() if its == effect and verdict(each) == key]
        parts += [f"{word} in {', '.join(names)}"] * bool(names)
    return f"{question}: {'; '.join(parts)}. " if parts else ""


def sentence(found: Effects, against: Effects, title: str) -> str:
    """For which networks the shortcut helps, and its value alone; and whether other shortcuts harm, as they did to He
    et al. 2016."""
    of_paper = {key: each for key, each in against.items() if key[0] in FIRST_TABLE}
    said = (
        answer("Residual better than plain", found, "plain - residual")
        + answer("Stop-gradient better than plain", found, "plain - stop-gradient")
        + answer("Stop-gradient worse than residual", found, "stop-gradient - residual")
        + answer("Worse than the identity, as in He et al. 2016 all are", of_paper, f"residual - {REFERENCE}")
    )
    if not said:
        return f"{title}: nothing to compare; give two or more of residual, stop-gradient and plain."
    return (
        f"{title}. {said}Yes: the whole 95 % interval of the difference in test error (paired by seed, not corrected "
        f"for their number) lies above {MARGIN}; no: below. One learning rate and one budget for all."
    )
