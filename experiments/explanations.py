"""Which explanation's measurement says before training how well a network will train?

The literature explains residual networks by conditioned Jacobians, gradients that neither vanish nor shatter, short
paths, small updates, ranks that do not collapse, and more. Each explanation comes with a measurement. Here all of them
are taken at the first weights of networks that differ in arm, first weights, kind, depth and width, and each network is
trained at its own best learning rate. How does each measurement order the networks, beside two baselines, the depth and
the loss after ten steps? Families are networks that differ in depth and width alone: measurements are chosen on half of
them, and tested on the other half.

Writes tables and a figure to OUT/explanations, runs to OUT/answer; finished runs are not repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor, nn

import figures
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.learning_rate_search import (
    ConditionRunner,
    Effort,
    check_conditions,
    train_condition,
)
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_choice, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.long_tables import errors_on_test, select
from experiments.engine.statistics.rank_correlation import HeldOut, held_out, rank_correlations
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Dataset, load_splits
from experiments.engine.training.optimisation import Training
from experiments.engine.training.train_run import probing_batch
from experiments.questions.answer import plan
from models import residual_blocks, set_flows
from probes import (
    Recording,
    gradient_noise,
    gradient_norms,
    jacobian_spectrum,
    path_contributions,
    record,
    residual_magnitudes,
    stream_statistics,
)
from probes.tables import table

EXPERIMENT = "explanations"
OUTPUTS = ("measured",)
EARLY = 10
"""Steps after which the loss is a baseline."""
BASELINES = ("depth", f"loss after {EARLY} steps")
FAMILIES = (
    plan.RESIDUAL,
    plan.STOP_GRADIENT,
    Condition("gradient-only", "gradient-only"),
    plan.PLAIN,
    Condition("shortest-path", "shortest-path"),
    plan.PLAIN_NEAR,
    *plan.FIRST_WEIGHTS,
    Condition("plain, t = 0.25", "plain", first_weights=0.25),
    plan.RESIDUAL_NEAR,
    plan.VALUE_NEAR,
    plan.PRE_RESIDUAL,
    plan.PRE_PLAIN,
    plan.MIRROR,
    plan.RESIDUAL_SCALED,
    plan.VALUE_SCALED,
    Condition("skipinit, residual", "residual", network="skipinit"),
    Condition("fixup, residual", "residual", network="fixup"),
    Condition("halved sum, residual", "residual", network="halved-sum"),
    Condition("norm after sum, residual", "residual", network="norm-after-sum"),
)
"""Networks that differ in depth and width alone."""


Measured = dict[str, float]


def measure_all(model: nn.Module, batches: Batches) -> Measured:
    """Every measurement of a network at its first weights, a number each; nan where it has none."""
    found: Measured = {}
    for measure in (of_jacobians, of_gradients, of_paths, of_stream, of_batches):
        found |= measure(*probing_batch(model, batches))
    return found


def of_jacobians(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the function that is computed: how far from an isometry, whatever the arm's backward is."""
    set_flows(model, [block.flow.exact for block in residual_blocks(model)])
    stream, blocks = (jacobian_spectrum(model, images[:8], of=of) for of in ("stream", "blocks"))
    return {
        "Jacobian of the stream, size": abs(logarithm(mean(stream, "mean_square"))),
        "Jacobian of the stream, spread": logarithm(mean(stream, "spread")),
        "Jacobians of blocks, spread": logarithm(mean(blocks, "spread")),
        "Jacobians of blocks, distance to I": mean(blocks, "distance"),
    }


def of_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the arm's own backward."""
    recording = recorded(model, images, labels)
    norms = select(gradient_norms(recording), quantity="total").sort_values("depth")["value"].to_numpy()
    magnitudes = residual_magnitudes(recording)
    return {
        "gradient norm, first over last block": abs(logarithm(norms[0] / norms[-1])),
        "branch over shortcut": mean(magnitudes, "ratio"),
    }


def of_paths(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Signed shares of the gradient at the first fork, by the number of branches."""
    shares = select(path_contributions(recorded(model, images[:32], labels[:32])), quantity="share")
    lengths, values = shares["path_length"].to_numpy(float), shares["value"].to_numpy(float)
    return {
        "mean path length": float(lengths @ values) / lengths.max(),
        f"share of paths of at most {plan.SHORT_PATH}": float(values[lengths <= plan.SHORT_PATH].sum()),
    }


def of_stream(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the last fork."""
    with record(model, keep=True) as recording:
        model(images)
    found = stream_statistics(recording)
    last = found[found["depth"] == found["depth"].max()].set_index("quantity")["value"]
    return {
        "branch variance over stream variance": mean(found, "variance_ratio"),
        "effective rank of the stream": float(last["effective_rank"]),
        "cosine between positions": float(last["cosine"]),
    }


def of_batches(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the gradients of small batches."""
    parts = list(zip(images.split(16), labels.split(16), strict=True))
    noise = gradient_noise(
        model, lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]), parts, of="model"
    )
    return {
        "gradient signal to noise": mean(noise, "signal_to_noise"),
        "gradient confusion, smallest cosine": mean(noise, "smallest_cosine"),
    }


def recorded(model: nn.Module, images: Tensor, labels: Tensor) -> Recording:
    """Of a forward and backward of the mean loss."""
    with record(model) as recording:
        F.cross_entropy(model(images), labels).backward(retain_graph=True)
    return recording


def mean(found: pd.DataFrame, quantity: str) -> float:
    """Over blocks, those without a value left out."""
    return float(select(found, quantity=quantity)["value"].mean())


def logarithm(value: float) -> float:
    """Base 10; nan of what is not positive."""
    return float(np.log10(value)) if value > 0 else np.nan


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 20, 56, 110)
    """Layers, each 6n + 2."""
    seeds: tuple[int, ...] = (1200, 1201)
    """Reported seeds, each with a split of its own."""
    tuning_seeds: tuple[int, ...] = (2200,)
    """Seeds whose runs choose learning rates, by validation, and are never reported, nor evaluated on test images."""
    families: tuple[str, ...] = ()
    """Names of the families to measure and train, beside the residual one; none: all."""
    wide: int = 16
    """Channels of a second width, at one depth."""
    wide_depth: int | None = 20
    """The depth at which networks of that width are added; None: nowhere."""
    computing: Computing = field(default_factory=lambda: Computing(channels_last=True))

    def check(self) -> None:
        super().check()
        if self.families:
            check_unique("--families", self.families)
        for name in self.families:
            check_choice("--families", name, tuple(family.name for family in FAMILIES))
        if self.wide_depth is not None and self.wide == self.width:
            raise BadInput(f"--wide {self.wide}: give another than --width, or no --wide-depth")
        for size in self.sizes():
            check_conditions(size, self.chosen(), size.depths, advice="leave it out (--families)")

    def chosen(self) -> tuple[Condition, ...]:
        """The families, the residual one always among them: it is what the others are compared with."""
        return tuple(f for f in FAMILIES if not self.families or f.name in (plan.RESIDUAL.name, *self.families))

    def sizes(self) -> list["Settings"]:
        """The settings of each width, with its depths."""
        wide = [replace(self, width=self.wide, depths=(self.wide_depth,))] if self.wide_depth is not None else []
        return [self, *wide]


QUICK = Settings(
    depths=(8, 14),
    families=("stop-gradient", "plain", "plain, near-identity", "plain, looks-linear"),
    wide_depth=None,
    seeds=(1200, 1201),
    training=Training(epochs=2),
)


def main(settings: Settings) -> None:
    """Measure and train every network, and report what predicts."""
    settings.check()
    output = settings.output(EXPERIMENT)
    parts = [of_size(size, output.folder / "sizes" / f"width{size.width}") for size in settings.sizes()]
    output.clear()
    output.table("networks", found := pd.concat(parts, ignore_index=True))
    report(found, output)


def train_measured(run: Run, checkpoint: Path | None = None, *, datasets: Mapping[str, Dataset]) -> Outcome:
    """Train a run; a reported one is measured before its first step."""

    def measure(model: nn.Module, batches: Batches, epoch: int, last: bool) -> Tables:
        if epoch:
            return {}
        rows = ({"measurement": name, "value": value} for name, value in measure_all(model, batches).items())
        return {"measured": table(rows)}

    return train_condition(run, checkpoint, datasets=datasets, measure=measure)


def of_size(settings: Settings, folder: Path) -> pd.DataFrame:
    """Measure and train all networks of one width; a long table, means over seeds.

    Columns: control (the family), arm, first_weights, depth_total, width, measurement, quantity ("measured"; "outcome"
    in every row's company, see `with_outcomes`), value.
    """
    splits = load_splits(settings.data, (*settings.seeds, *settings.tuning_seeds))
    dataset = splits[settings.seeds[0]]
    runner = ConditionRunner(
        settings, dataset, splits, effort=lambda _: Effort((-3, -2, -1)), outputs=OUTPUTS, task=train_measured
    )
    tables, _, _ = runner.train_at_best_rates(settings.chosen(), Output(folder, dry_run=settings.execution.dry_run))
    return networks_of(tables, settings, chance=1 - 1 / len(dataset.classes))


def networks_of(tables: Tables, settings: Settings, *, chance: float) -> pd.DataFrame:
    """A row for each network and measurement: the mean over its seeds, and its outcome beside it.

    The outcome is the part of the gap between chance and the residual network of its size that it closes in test error.
    A run that diverged has chance errors.
    """
    errors = errors_on_test(tables["outcomes"]).groupby(["control", "depth_total"])["value"]
    by_network = (errors.sum() + chance * (len(settings.seeds) - errors.count())) / len(settings.seeds)
    early = select(tables["losses"], step=EARLY).groupby(["control", "depth_total"])["value"].mean()
    measured = tables["measured"].groupby(["control", "depth_total", "measurement"], sort=False)["value"].mean()
    rows: list[dict[str, object]] = []
    for condition in settings.chosen():
        for depth in settings.depths:
            key = condition.name, depth
            about = {"control": condition.name, "arm": condition.arm, "depth_total": depth, "width": settings.width}
            about |= {"first_weights": str(condition.first_weights or "he")}
            residual = by_network[plan.RESIDUAL.name, depth]
            outcome = (chance - by_network.get(key, chance)) / (chance - residual)
            values = measured[key].to_dict() if key in measured.index.droplevel(2) else {}
            values |= {BASELINES[0]: float(depth), BASELINES[1]: float(early.get(key, np.nan))}
            for name, value in values.items():
                own = {**about, "measurement": name}
                rows += [
                    {**own, "quantity": "measured", "value": value},
                    {**own, "quantity": "outcome", "value": outcome},
                ]
    return table(rows)


def report(found: pd.DataFrame, output: Output) -> None:
    """Write and print the correlations, and say which measurements hold on families that did not choose them."""
    keys = ["control", "depth_total", "width"]
    wide = select(found, quantity="measured").pivot(index=keys, columns="measurement", values="value")
    outcome = select(found, quantity="outcome").groupby(keys)["value"].first()
    networks = wide.assign(outcome=outcome).reset_index().rename(columns={"control": "family"})
    names = [name for name in found["measurement"].unique() if name not in BASELINES]
    tested = held_out(networks, names, baselines=BASELINES)
    correlations = pd.concat([rank_correlations(networks, [*names, *BASELINES]), tested.table], ignore_index=True)
    kinds = correlations["measurement"].map(dict.fromkeys(BASELINES, "baseline")).fillna("measurement")
    correlations = table(correlations.assign(treatment=kinds).to_dict("records"))
    output.table("correlations", correlations)
    show.save_figure(output, figures.explanations(drawn := pd.concat([correlations, found])), drawn, EXPERIMENT)
    console = show.terminal()
    families = networks["family"].nunique()
    show.table(
        console,
        correlation_rows(correlations),
        title=f"Rank correlation with the gap to chance closed, {len(networks)} networks of {families} families",
        caption="95 % over networks, over families; within, between families; held out: on families that did not choose"
        " its sign; chosen: how often it is the best of its half",
    )
    show.files(console, output)
    for sentence in conclusions(correlations, tested):
        console.print(sentence)


def correlation_rows(found: pd.DataFrame) -> show.Rows:
    """By measurement, the largest correlation first."""
    wide = found.pivot(index="measurement", columns="quantity", values="value")
    wide = wide.reindex(wide["rho"].abs().sort_values(ascending=False, na_position="last").index)
    rows: show.Rows = {}
    for name, of in wide.iterrows():
        row = {"rho": f"{of['rho']:.2f}"}
        row |= {
            f"[{word}]": f"[{of[low]:.2f}, {of[high]:.2f}]"
            for word, low, high in (("networks", "low", "high"), ("families", "family low", "family high"))
        }
        row |= {word: f"{of[word]:.2f}" for word in ("within", "between", "held out", "chosen")}
        rows["", str(name)] = {**row, "n": f"{of['n']:.0f}"}
    return rows


def conclusions(found: pd.DataFrame, tested: HeldOut) -> list[str]:
    """What was chosen on half of the families and how it did on the other half, beside the baselines."""
    wide = found.pivot(index="measurement", columns="quantity", values="value")
    low, high = np.nanquantile(tested.best, (0.025, 0.975))
    chosen = wide["chosen"].drop(list(BASELINES)).sort_values(ascending=False)
    lines = [
        f"The measurement that is best on half of the families has a rank correlation of {np.nanmean(tested.best):.2f} "
        f"on the other half (95 % of splits: {low:.2f} to {high:.2f}). Chosen most often: {chosen.index[0]}."
    ]
    lines += [f"Baseline {name}: {np.nanmean(values):.2f}." for name, values in tested.baselines.items()]
    only = [str(n) for n, of in wide.iterrows() if abs(of["within"]) > 0.5 and abs(of["between"]) < 0.3]
    lines.append(f"Predict within families alone: {', '.join(only) or 'none'}.")
    return lines


if __name__ == "__main__":
    run_script("experiments.explanations")
