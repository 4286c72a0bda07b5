"""How the experiment on training speed ends in the terminal: steps, errors, and Szegedy et al.'s claim."""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.engine.effects import CEILING, Estimate
from experiments.engine.ending import mean_sd, show_estimate
from experiments.engine.speed import REFERENCE, Comparison

# Fixed before any run: plain must take at least so many times residual's steps to count as slower, and may have a test
# error that much higher or lower to count as alike.
FASTER, ALIKE = 1.1, 0.02
CLAIM = "Szegedy et al. (2016): shortcuts speed training up, and hardly change the final accuracy"
RULE = (
    f"That holds if the whole 95 % interval of the ratio of steps lies above {FASTER} and that of the difference of "
    f"test errors within ±{ALIKE}, and does not if one lies wholly outside. They compared Inception-v4 with "
    "Inception-ResNet-v2, of like cost and trained by RMSProp on ImageNet; the twins here are of like weights, trained "
    "by SGD with a schedule of fixed length, so that steps are steps of that schedule."
)
Verdict = Literal["holds", "does not hold", "is undecided"]


def show_speed(
    console: Console,
    steps: pd.DataFrame,
    errors: pd.DataFrame,
    *,
    networks: Sequence[str],
    arms: Sequence[str],
    seeds: int,
) -> None:
    """Network x arm: the first step at each target, the final test error, n."""
    targets = list(steps["target"].unique())
    shown = Table(title="First step at a training loss, test error: mean ± sd over n seeds", box=SIMPLE_HEAD)
    for column in ("", *(f"loss {target:g}" for target in targets), "test error", "n"):
        shown.add_column(column, no_wrap=True)
    for network in networks:
        shown.add_row(network, style="bold")
        for arm in arms:
            of_arm, its_errors = (rows[(rows["network"] == network) & (rows["arm"] == arm)] for rows in (steps, errors))
            reached = [show_steps(of_arm[of_arm["target"] == target]["value"], seeds) for target in targets]
            shown.add_row(arm, *reached, mean_sd(its_errors["value"]), str(len(its_errors)))
        shown.add_section()
    console.print(shown)
    console.print(f"k of {seeds}: so many seeds reached that loss before the end; no mean is taken of them alone\n")


def show_steps(steps: pd.Series, seeds: int) -> str:
    """`57 ± 3`; `2 of 3` where a seed has not reached the target."""
    reached = steps.dropna()
    if len(reached) < seeds:
        return f"{len(reached)} of {seeds}"
    return f"{reached.mean():.0f}" + (f" ± {reached.std():.0f}" if seeds > 1 else "")


def show_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Arms against residual: the ratio of steps to each target, and the difference of test errors."""
    if not comparisons:
        return
    title = f"Against {REFERENCE}, paired by seed: mean [95 % t interval]; ratios: geometric mean"
    shown = Table(title=title, box=SIMPLE_HEAD)
    for column in ("", *(f"steps to {target:g}, ratio" for target in comparisons[0].ratios), "test error, difference"):
        shown.add_column(column)
    for each in comparisons:
        ratios = [show_or_dash(found, sign=False) for found in each.ratios.values()]
        shown.add_row(f"{each.network}, {each.arm}", *ratios, show_or_dash(each.error, digits=3))
    console.print(shown)
    console.print("-: not every seed of both has a value; intervals are not corrected for their number\n")


def show_or_dash(found: Estimate | None, *, digits: int = 2, sign: bool = True) -> str:
    """An estimate, or `-` for none."""
    return "-" if found is None else show_estimate(found, digits=digits, sign=sign)


def lowest(comparison: Comparison) -> tuple[float, Estimate] | None:
    """The lowest target that every seed of both arms has reached, and the ratio there: on it the claim is judged."""
    reached = [(target, found) for target, found in comparison.ratios.items() if found is not None]
    return min(reached, key=lambda each: each[0], default=None)


def judge(ratio: Estimate | None, error: Estimate | None) -> Verdict:
    """Whether the claim holds; an interval that is missing (nan), or an estimate, decides nothing."""
    slower = ratio is not None and ratio.low > FASTER
    alike = error is not None and error.low > -ALIKE and error.high < ALIKE
    if slower and alike:
        return "holds"
    not_slower = ratio is not None and ratio.high < FASTER
    differs = error is not None and (error.low > ALIKE or error.high < -ALIKE)
    return "does not hold" if not_slower or differs else "is undecided"


def sentence(comparisons: Sequence[Comparison], errors: pd.DataFrame, *, seeds: int, title: str) -> str:
    """What the numbers say of Szegedy et al.'s claim, network by network."""
    parts = []
    for each in comparisons:
        if each.arm == "plain":
            at = lowest(each)
            steps = (
                f"to a loss of {at[0]:g}, the lowest that all seeds of both reach, plain takes "
                f"{show_estimate(at[1], sign=False)} times the steps"
                if at
                else "no loss asked for is reached by all seeds of both"
            )
            change = (
                "not every run has a test error"
                if each.error is None
                else f"its test error differs by {show_estimate(each.error, digits=3)}{ceiling(errors, each)}"
            )
            parts.append(f"in {each.network} it {judge(at[1] if at else None, each.error)} ({steps}; {change})")
    if not parts:
        return f"{title}: nothing can be said of {CLAIM}, since the plain arm was left out."
    return f"{title}, n = {seeds}. {CLAIM}: {'; '.join(parts)}. {RULE}"


def ceiling(errors: pd.DataFrame, comparison: Comparison) -> str:
    """A remark where both arms are so good that little room is left to differ in."""
    of_network = errors[errors["network"] == comparison.network].groupby("arm")["value"].mean()
    both = of_network.reindex([REFERENCE, comparison.arm])
    return ", both at the ceiling, with little room to differ" if (1 - both >= CEILING).all() else ""
