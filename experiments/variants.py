"""Does the answer depend on the block?

Trains networks of different make in the same arms, with the same budget and learning rate (which suits some of them
better than others), and compares each network's arms: where does the shortcut help, and does its value help without its
gradient? Those of He et al. 2016 (arXiv 1603.05027), Table 1, are compared with the ordinary ResNet, too: there the
plain identity was the best shortcut.

Writes tables, a figure and every run's run.json to OUT/variants; finished runs are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import check_at_least
from experiments.engine.running.output import Output
from experiments.engine.running.run import Run, Tables
from experiments.engine.statistics.estimates import MARGIN, Estimate, estimate
from experiments.engine.statistics.long_tables import errors_and_losses, errors_on_test, select
from experiments.engine.training.data import load
from experiments.engine.training.networks import nearest_depth
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings, check_networks
from experiments.engine.training.train_run import train_run
from probes.tables import table

EXPERIMENT = "variants"
QUESTIONS = {  # by the two arms whose test errors are subtracted: whether the difference is above the margin
    ("plain", "residual"): "residual better than plain",
    ("plain", "stop-gradient"): "stop-gradient better than plain",
    ("stop-gradient", "residual"): "stop-gradient worse than residual",
}
REFERENCE = "resnet"
FIRST_TABLE = {  # He et al. 2016 (arXiv 1603.05027), Table 1: test error (%), gates' biases first 0
    "resnet": "6.61",
    "halved-shortcut": "over 20",
    "halved-sum": "12.35",
    "dropout-shortcut": "over 20",
    "exclusive-gate": "over 20",
    "shortcut-gate": "12.86",
    "projection-c": "12.22",
}
Differences = dict[tuple[str, str], Estimate]
"""By network, and by what is subtracted: "plain - residual"."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of the experiment."""

    network: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "resnet"
    networks: tuple[str, ...] = (
        "resnet", "projection-c", "halved-shortcut", "dropout-shortcut", "shortcut-gate", "exclusive-gate",
    )  # fmt: skip
    """The networks, by name (docs/networks.md lists them all)."""
    depth: int = 32
    """Layers; a network that cannot have so many has the nearest number that it can."""
    arms: tuple[str, ...] = ("residual", "stop-gradient", "plain")
    """Arms by name; of residual, stop-gradient and plain those given are compared with each other."""

    def check(self) -> None:
        super().check()
        check_networks(self.networks)
        check_at_least("--depth", self.depth, 1)
        for network in self.networks:
            self.on(network).check_depths("--depth", self.depth_of(network))
            self.on(network).check_arms("--arms", *self.arms)

    def depth_of(self, network: str) -> int:
        """The depth at which a network is trained."""
        return nearest_depth(network, self.depth, width=self.width)


QUICK = Settings(networks=("resnet", "norm-after-sum", "dirac"), depth=8, seeds=(0, 1), training=Training(epochs=3))


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    dataset = load(settings.data)
    output = show.live(settings.output(EXPERIMENT))
    depths = {network: settings.depth_of(network) for network in settings.networks}
    runs = [
        run
        for network, depth in depths.items()
        for run in settings.on(network).runs(
            EXPERIMENT, dataset, arms=settings.arms, depths=(depth,), labels={"network": network}
        )
    ]
    tables, diverged = run_grid(runs, partial(train_run, dataset=dataset), output, execution=settings.execution)
    report(tables, diverged, depths, settings.arms, output, title=dataset.title)


def report(
    tables: Tables,
    diverged: Sequence[Run],
    depths: Mapping[str, int],
    arms: Sequence[str],
    output: Output,
    *,
    title: str,
) -> None:
    """Write the differences, draw the figure, and print the results. depths: of the networks, by name."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    drawn, errors = errors_and_losses(tables["outcomes"]), error_table(tables["outcomes"])
    found, against = between_arms(errors), from_reference(errors)
    output.table("differences", difference_table(found | against, depths))
    show.save_figure(output, figures.variants(drawn), drawn, EXPERIMENT)
    show_errors(console, drawn, arms, depths, diverged)
    show_against_paper(console, against)
    if decided := decide(found, against):
        remark = "Yes: above the margin; no: below it. One learning rate and one budget for all."
        show.conclusion(console, output, decided, title=f"{title}, differences in test error", remark=remark)
    else:
        show.files(console, output)
        answer = f"{title}: nothing to compare; give two or more of residual, stop-gradient and plain."
        show.end(console, output, answer=answer)


def error_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Test errors (0..1): a row for each network and seed, a column for each arm."""
    return errors_on_test(outcomes).pivot_table(index=["network", "seed"], columns="arm", values="value", sort=False)


def between_arms(errors: pd.DataFrame) -> Differences:
    """The test error of one arm of each network minus another's, paired by seed."""
    return {
        (str(network), f"{more} - {less}"): estimate(differences.to_numpy())
        for network in errors.index.unique("network")
        for more, less in QUESTIONS
        if {more, less} <= set(errors.columns)
        and len(differences := (errors[more] - errors[less]).loc[network].dropna())
    }


def from_reference(errors: pd.DataFrame) -> Differences:
    """By how much each network's test error, with its shortcuts, exceeds that of the ResNet; paired by seed, which is
    the order of the data, since other weights are drawn."""
    if "residual" not in errors or REFERENCE not in errors.index.unique("network"):
        return {}
    wide = errors["residual"].unstack("network")
    return {
        (str(network), f"residual - {REFERENCE}"): estimate(differences.to_numpy())
        for network in wide.columns
        if network != REFERENCE and len(differences := (wide[network] - wide[REFERENCE]).dropna())
    }


def difference_table(found: Differences, depths: Mapping[str, int]) -> pd.DataFrame:
    """The differences as a long table: mean, ends of the interval where there is one, n."""
    return table(
        row
        for (network, effect), difference in found.items()
        for row in difference.rows(network=network, depth_total=depths[network], outcome="test error", effect=effect)
    )


def decide(found: Differences, against: Differences) -> dict[str, show.Decision]:
    """By network and question: the difference, the margin, and whether it lies above; also whether other shortcuts
    harm, as all did in He et al. 2016."""
    questions = {f"{more} - {less}": question for (more, less), question in QUESTIONS.items()}
    questions[f"residual - {REFERENCE}"] = "worse than the identity"
    of_paper = {key: difference for key, difference in against.items() if key[0] in FIRST_TABLE}
    return {
        f"{network}: {questions[effect]}": show.decision(
            difference, MARGIN, {"above": "yes", "within": "no"}, one_sided=True
        )
        for (network, effect), difference in (found | of_paper).items()
    }


def show_errors(
    console: Console, drawn: pd.DataFrame, arms: Sequence[str], depths: Mapping[str, int], diverged: Sequence[Run]
) -> None:
    """Network x arm: test error, with training loss in brackets, and how many runs diverged."""
    rows = {}
    for network, depth in depths.items():
        lost = sum(run.labels["network"] == network for run in diverged)
        shown = {arm: error_and_loss(select(drawn, network=network, arm=arm)) for arm in arms}
        rows["", network] = {"depth": str(depth), **shown, "note": f"{lost} diverged" * bool(lost)}
    show.table(console, rows, title="Test error, %: mean ± sd over seeds (mean training loss)")


def error_and_loss(rows: pd.DataFrame) -> str:
    """`3.9 ± 0.3 (0.0021)`, the error in percent."""
    error, loss = (select(rows, quantity=quantity)["value"] for quantity in ("error", "loss"))
    if error.empty:
        return "-"
    spread = f" ± {100 * error.std():.1f}" if len(error) > 1 else ""
    return f"{100 * error.mean():.1f}{spread} ({loss.mean():.2g})"


def show_against_paper(console: Console, against: Differences) -> None:
    """The shortcuts of He et al. 2016, Table 1, against the identity: here and there."""
    theirs = f"He et al. 2016: error, % ({REFERENCE}: {FIRST_TABLE[REFERENCE]})"
    rows = {
        ("", network): {"difference of test error": show.estimate(difference), theirs: FIRST_TABLE[network]}
        for (network, _), difference in against.items()
        if network in FIRST_TABLE
    }
    if rows:
        caption = "Theirs: 110 layers, CIFAR-10, 64,000 steps. Gates begin with bias 0, there and here."
        show.table(console, rows, title=f"Residual networks against {REFERENCE}", caption=caption)


if __name__ == "__main__":
    run_script("experiments.variants")
