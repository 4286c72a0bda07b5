"""Does the answer survive another forward?

A shortcut's value also changes the statistics of the forward: each sum has a larger variance than its branch, and the
branch's normalisation divides by it, so that its Jacobian, the only way back in a stop-gradient network, shrinks with
depth. Here the factorial's arms are trained on networks with other statistics: with the normalisation behind the sum,
sums or branches rescaled, no normalisation at all, normalisation before each convolution, and on a residual MLP.
Each network and arm has its own best learning rate, chosen by validation on other seeds.

An arm whose network is dead, in which nothing but the classifier's bias ever receives a gradient, is not trained: such
are networks whose branches begin at zero, without their shortcuts' values.

Writes tables, figures and the search to OUT/forward_statistics, runs to OUT/answer; finished runs are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch.nn.functional as F
import tyro

import figures
from experiments.engine.conditions.catalogue import (
    FORWARDS,
    GRADIENT_ONLY,
    PLAIN,
    RESIDUAL,
    STOP_GRADIENT,
    on_networks,
)
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.gap_closed import (
    HALF,
    NO_GAP,
    NOTHING,
    GapClosed,
    Key,
    condition_table,
    difference,
    gap_table,
    gaps_closed,
)
from experiments.engine.conditions.learning_rate_search import ConditionRunner, Rates
from experiments.engine.reporting import show
from experiments.engine.reporting.conditions import SEARCHED, diverged_note, format_gap, show_gaps_closed
from experiments.engine.reporting.factorial import show_outcomes
from experiments.engine.running.cli import run_script
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN
from experiments.engine.statistics.long_tables import errors_and_losses
from experiments.engine.training.data import Batches, Dataset, load
from experiments.engine.training.networks import nearest_depth
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import check_networks
from experiments.engine.training.train_run import make_network, probing_batch

EXPERIMENT = "forward_statistics"
MIXED = (STOP_GRADIENT, GRADIENT_ONLY)
OUTCOME = "test error"

# Without normalisation and at full weights a block of the residual MLP multiplies its input by about 1.5: beyond some
# ten layers no learning rate keeps it finite.
DEEPEST = {"mlp": 8}


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    network: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "resnet"
    depths: Annotated[tuple[int, ...], tyro.conf.Fixed, tyro.conf.Suppress] = (32,)
    networks: tuple[str, ...] = FORWARDS
    """The networks, by name (docs/networks.md lists them)."""
    depth: int = 32
    """Layers; a network that cannot have so many has the nearest number that it can, and mlp at most 8."""

    def check(self) -> None:
        super().check()
        check_networks(self.networks)
        for network in self.networks:
            self.on(network).check_depths("--depth", self.depth_of(network))

    def depth_of(self, network: str | None) -> int:
        """The depth at which a network is trained."""
        name = network or self.network
        return nearest_depth(name, min(self.depth, DEEPEST.get(name, self.depth)), width=self.width)


QUICK = Settings(
    networks=("resnet", "rescaled-sum", "fixup"),
    depth=8,
    seeds=(0, 1),
    tuning_seeds=(100,),
    training=Training(epochs=2),
)


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    runner = ConditionRunner(settings, load(settings.data))
    output = show.live(settings.output(EXPERIMENT))
    every = on_networks(settings.networks)
    first = {c: runner.run_of(c, settings.depth_of(c.network), seed=0, rate=0.1) for c in every}
    dead = [condition for condition in every if is_dead(first[condition], runner.dataset)]
    alive = [condition for condition in every if condition not in dead]
    rates = best_rates(runner, settings, alive, output)
    runs = [run for c in alive for run in runner.runs([c], [settings.depth_of(c.network)], rates)]
    tables, diverged = runner.train(runs, output)
    report(tables, diverged, alive, dead, rates, runner.dataset, settings, output)


def is_dead(run: Run, dataset: Dataset) -> bool:
    """Whether nothing in the run's network but the classifier's bias, its last parameter, receives a gradient at its
    first weights, on one batch of training images.

    Such a network gives all images the same outputs, and stays so where its features are zeros: ReLU passes no gradient
    at 0, and zeros give the classifier's weights none.
    """
    model = make_network(run, dataset)
    copied, images, labels = probing_batch(model, Batches(dataset, next(model.parameters()).device))
    F.cross_entropy(copied(images), labels).backward()
    *others, _ = copied.parameters()
    return not any(parameter.grad is not None and parameter.grad.any() for parameter in others)


def best_rates(runner: ConditionRunner, settings: Settings, conditions: Sequence[Condition], output: Output) -> Rates:
    """Each condition's best rate, at its network's depth."""
    found: Rates = {}
    for depth in dict.fromkeys(settings.depth_of(condition.network) for condition in conditions):
        at_depth = [condition for condition in conditions if settings.depth_of(condition.network) == depth]
        found |= runner.best_rates(at_depth, (depth,), output.below("tuning", f"depth{depth}"))
    return found


def report(
    tables: Tables,
    diverged: Sequence[Run],
    alive: Sequence[Condition],
    dead: Sequence[Condition],
    rates: Rates,
    dataset: Dataset,
    settings: Settings,
    output: Output,
) -> None:
    """Write the gaps closed, draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output, advice=SEARCHED):
        return
    outcomes, names = tables["outcomes"], [condition.name for condition in alive]
    runs = condition_table(outcomes, dataset.size("test"))
    gaps = gaps_of_networks(runs, alive, settings)
    output.table("scores", scores := gap_table(gaps, alive))
    drawn = errors_and_losses(outcomes)
    show.save_figure(output, figures.variants(drawn), drawn, EXPERIMENT)
    of_mixed = scores[scores["arm"].isin(MIXED)]
    if of_mixed[of_mixed["quantity"] == "R"]["value"].notna().any():
        show.save_figure(output, figures.gap_closed(of_mixed), of_mixed, "gap_closed")
    show_outcomes(console, outcomes, runs, names, diverged, len(dataset.classes), by="control")
    show_gaps_closed(console, scores, rates)
    depths = {network: settings.depth_of(network) for network in settings.networks}
    remark = (
        f"R: the gap in {OUTCOME} that is closed; more than half of it {count_recovering(gaps, alive)}. Differences "
        f"are of {OUTCOME}. One data set, one budget, each condition's best rate.{diverged_note(diverged)}"
    )
    show.conclusion(console, output, decide(runs, gaps, depths, dead), title=dataset.title, remark=remark)


def gaps_of_networks(runs: pd.DataFrame, alive: Sequence[Condition], settings: Settings) -> dict[Key, GapClosed]:
    """The gap closed by every condition whose network learns without its shortcuts, too."""
    found: dict[Key, GapClosed] = {}
    for network in settings.networks:
        own = [condition for condition in alive if condition.network == network]
        if {PLAIN, RESIDUAL} <= {condition.arm for condition in own}:
            found |= gaps_closed(runs, own, (settings.depth_of(network),))
    return found


# On how many networks does an arm close more than half of the gap? The rules were fixed before any result was seen.
def decide(
    runs: pd.DataFrame, gaps: Mapping[Key, GapClosed], depths: Mapping[str, int], dead: Sequence[Condition]
) -> dict[str, show.Decision]:
    """By effect: its estimate, its margin and its reading.

    The gap that each arm closes on every network; where the plain network is dead there is no gap, and stop-gradient is
    compared with residual. depths: each network's. dead: conditions that were not trained.
    """
    found: dict[str, show.Decision] = {}
    lost = {network: [c.arm for c in dead if c.network == network] for network in depths}
    names = {(c.network, c.arm): c.name for c in on_networks(tuple(depths))}
    for arm in MIXED:
        for network in depths:
            if PLAIN not in lost[network]:
                name = names[network, arm]
                closed = gaps.get((name, depths[network], OUTCOME), NOTHING)
                found[f"R of {name}"] = format_gap(closed.numbers), f"{HALF}", reading(closed)
    words = {"above": "worse", "below": "better", "within": "as good"}
    for network in depths:
        if PLAIN in lost[network]:
            worse = difference(runs, depths[network], names[network, STOP_GRADIENT], names[network, RESIDUAL], OUTCOME)
            text, margin, word = show.decision(worse, MARGIN, words, missing="no seed has both")
            word += f"; {' and '.join(lost[network])} dead by construction: no R"
            found[f"{network}: stop-gradient - residual"] = text, margin, word
    return found


def reading(closed: GapClosed) -> str:
    """On which side of one half the whole interval lies."""
    if closed.note == NO_GAP:
        return NO_GAP
    return {"yes": "more than half", "no": "less than half"}.get(closed.recovers, "undecided")


def count_recovering(gaps: Mapping[Key, GapClosed], conditions: Sequence[Condition]) -> str:
    """On how many of the networks each arm closes more than half of the gap."""
    parts = []
    for arm in MIXED:
        names = {condition.name for condition in conditions if condition.arm == arm}
        closed = [gap for (name, _, outcome), gap in gaps.items() if name in names and outcome == OUTCOME]
        count = sum(gap.recovers == "yes" for gap in closed)
        parts.append(f"by {arm} on {count} of {len(closed)} networks")
    return ", ".join(parts)


if __name__ == "__main__":
    run_script("experiments.forward_statistics")
