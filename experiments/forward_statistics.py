"""Does the answer survive another forward?

A shortcut's value also changes the statistics of the forward: each sum has a larger variance than its branch, and the
branch's normalisation divides by it, so that its Jacobian, the only way back in a stop-gradient network, shrinks with
depth. Here the factorial's arms are trained on networks in which that is otherwise: with the normalisation behind the
sum, sums or branches rescaled, no normalisation at all, normalisation before each convolution, and on a residual MLP.
Each network and arm has its own best learning rate, chosen by validation on other seeds.

An arm whose network is dead, in which nothing but the classifier's bias ever receives a gradient, is not trained: such
are networks whose branches begin at zero, without their shortcuts' values.

Writes tables, figures and the search to OUT/forward_statistics, cells to OUT/answer, and repeats none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import pandas as pd
import tyro

import figures
from experiments.engine.answer import FORWARDS, on_networks
from experiments.engine.command import check_choice, make_folder, run_script
from experiments.engine.condition_ending import left_out, show_conditions, show_scores
from experiments.engine.condition_scores import Key, condition_table, score_table, scores
from experiments.engine.conditions import Bench, Condition, ConditionSettings, Rates
from experiments.engine.data import load
from experiments.engine.dead import is_dead
from experiments.engine.ending import nothing_came_out, show_files, terminal
from experiments.engine.forward_reading import MIXED, sentence
from experiments.engine.grid import Cell, write_aside
from experiments.engine.network_effects import measured
from experiments.engine.networks import NETWORKS, nearest_depth
from experiments.engine.score import Recovery
from experiments.engine.settings import check_each_once
from experiments.engine.training import Training

EXPERIMENT = "forward_statistics"

# Without normalisation and at full weights a block of the residual MLP multiplies its input by about 1.5: beyond some
# ten layers no learning rate keeps it finite.
DEEPEST = {"mlp": 8}


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    network: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "resnet"
    depths: Annotated[tuple[int, ...], tyro.conf.Fixed, tyro.conf.Suppress] = (32,)
    networks: tuple[str, ...] = FORWARDS
    """The networks, by the names of the README's list."""
    depth: int = 32
    """Layers; a network that cannot have so many has the nearest number that it can, and mlp at most 8."""

    def check(self) -> None:
        super().check()
        check_each_once("--networks", self.networks)
        for network in self.networks:
            check_choice("--networks", network, tuple(NETWORKS))
            replace(self, network=network).check_depths("--depth", self.depth_of(network))

    def depth_of(self, network: str | None) -> int:
        """The depth at which a network is asked."""
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
    bench = Bench(settings, load(settings.data))
    folder = make_folder(settings.out / EXPERIMENT)
    make_folder(folder / "figures")
    every = on_networks(settings.networks)
    dead = [c for c in every if is_dead(bench.cell(c, settings.depth_of(c.network), seed=0, rate=0.1), bench.dataset)]
    alive = [condition for condition in every if condition not in dead]
    rates = best_rates(bench, settings, alive)
    cells = [
        bench.cell(condition, depth, seed, rates[condition.name, depth])
        for condition in alive
        for depth in (settings.depth_of(condition.network),)
        for seed in settings.seeds
    ]
    tables, diverged = bench.run(cells, alive, folder)
    finish(tables, diverged, alive, dead, rates, bench, settings)


def best_rates(bench: Bench, settings: Settings, conditions: Sequence[Condition]) -> Rates:
    """Each condition's best rate, at its network's depth."""
    found: Rates = {}
    for depth in {settings.depth_of(condition.network): None for condition in conditions}:
        at_depth = [condition for condition in conditions if settings.depth_of(condition.network) == depth]
        found |= bench.best_rates(at_depth, (depth,), settings.out / EXPERIMENT / "tuning" / f"depth{depth}")
    return found


def finish(
    tables: dict[str, pd.DataFrame],
    diverged: Sequence[Cell],
    alive: Sequence[Condition],
    dead: Sequence[Condition],
    rates: Rates,
    bench: Bench,
    settings: Settings,
) -> None:
    """Draw the figures, and print what came out."""
    console, folder, dataset = terminal(), settings.out / EXPERIMENT, bench.dataset
    if nothing_came_out(console, tables, folder):
        return
    outcomes = tables["outcomes"]
    cells = condition_table(outcomes, len(dataset.splits["test"][1]))
    found = scores_of_networks(cells, alive, settings)
    drawn = measured(outcomes)
    figures.save(figures.variants(drawn), drawn, folder / "figures", EXPERIMENT)
    mixed = [condition for condition in alive if condition.arm in MIXED]
    write_aside(folder / "scores.csv", of_all := score_table(found, alive))
    of_mixed = of_all[of_all["control"].isin([condition.name for condition in mixed])]
    if of_mixed[of_mixed["quantity"] == "R"]["value"].notna().any():
        figures.save(figures.gap_closed(of_mixed), of_mixed, folder / "figures", "recovery_scores")
    show_conditions(console, outcomes, cells, alive, diverged, len(dataset.classes))
    show_scores(console, found, rates)
    show_files(console, folder)
    depths = {network: settings.depth_of(network) for network in settings.networks}
    console.print(sentence(cells, found, depths, dead, title=dataset.title) + left_out(diverged))


def scores_of_networks(cells: pd.DataFrame, alive: Sequence[Condition], settings: Settings) -> dict[Key, Recovery]:
    """R of every condition whose network learns without its shortcuts, too."""
    found: dict[Key, Recovery] = {}
    for network in settings.networks:
        own = [condition for condition in alive if condition.network == network]
        if {"plain", "residual"} <= {condition.arm for condition in own}:
            found |= scores(cells, own, (settings.depth_of(network),))
    return found


if __name__ == "__main__":
    run_script("experiments.forward_statistics")
