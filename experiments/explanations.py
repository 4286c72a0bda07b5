"""Which explanation's measurement says before training how well a network will train?

The literature explains residual networks by conditioned Jacobians, gradients that neither vanish nor shatter, short
paths, small updates, ranks that do not collapse, and more. Each explanation comes with a measurement. Here all of them
are taken at the first weights of networks that differ in arm, first weights, kind, depth and width, and each network is
trained at its own best learning rate. How does each measurement order the networks, beside two baselines, the depth and
the loss after ten steps? Families are networks that differ in depth and width alone: measurements are chosen on half of
them, and tested on the other half.

Writes tables and a figure to OUT/explanations, runs to OUT/answer; finished runs are not repeated.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import figures
from experiments.engine.conditions.conditions import Condition, ConditionSettings
from experiments.engine.conditions.gradient_alignment import true_gradients
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
from experiments.engine.statistics.rank_correlation import FEWEST, HeldOut, held_out, rank_correlations, spearman
from experiments.engine.training.compute import Computing
from experiments.engine.training.data import Batches, Dataset, load_splits
from experiments.engine.training.loop import recompute_bn_statistics
from experiments.engine.training.optimisation import Training
from experiments.engine.training.train_run import probing_batch
from experiments.questions.answer import plan
from models.residual_blocks import set_exact_flows
from probes import (
    Recording,
    gradient_alignment,
    gradient_correlation,
    gradient_noise,
    gradient_norms,
    iterative_inference,
    jacobian_spectrum,
    linear_probes,
    path_contributions,
    precision,
    record,
    residual_magnitudes,
    similarity,
    stream_statistics,
    tangent_kernel,
    update_sizes,
)
from probes.tables import table

EXPERIMENT = "explanations"
OUTPUTS = ("measured",)
EARLY = 10
"""Steps after which the loss is a baseline."""
STEP = 0.01
"""The learning rate of the one step whose size is measured."""
SCATTERED = 3
"""Measurements whose networks the figure shows."""
BASELINES = ("depth", f"loss after {EARLY} steps")
UNNORMALISED = (
    Condition("skipinit, residual", "residual", network="skipinit"),
    Condition("fixup, residual", "residual", network="fixup"),
)
"""Without normalisation; in 80 steps they begin slowly."""
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
    *UNNORMALISED,
    Condition("halved sum, residual", "residual", network="halved-sum"),
    Condition("norm after sum, residual", "residual", network="norm-after-sum"),
)
"""Networks that differ in depth and width alone."""


Measured = dict[str, float]


def measure_all(model: nn.Module, batches: Batches) -> Measured:
    """Every measurement of a network at its first weights, a number each; nan where it has none.

    Each is taken of a copy in train mode, on a batch of training images.
    """
    found: Measured = {}
    for measure in (of_jacobians, of_gradients, of_paths, of_batches, of_kernels, of_a_step):
        found |= measure(*probing_batch(model, batches))
    return found | of_stream(*probing_batch(model, batches, most=512)) | of_a_line(model, batches)


def of_jacobians(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the function that is computed: how far from an isometry, whatever the arm's backward is."""
    set_exact_flows(model)
    stream, blocks = (jacobian_spectrum(model, images[:8], of=of) for of in ("stream", "blocks"))
    return {
        "Jacobian of the stream: size": abs(logarithm(mean(stream, "mean_square"))),
        "Jacobian of the stream: spread": logarithm(mean(stream, "spread")),
        "Jacobians of blocks: spread": logarithm(mean(blocks, "spread")),
        "Jacobians of blocks: distance to I": mean(blocks, "distance"),
    }


def of_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the arm's own backward, and how far it is from the true one and from its own in float64."""
    recording = recorded(model, images, labels)
    own = gradients_of(model)
    true = true_gradients(model, images, labels)
    aligned = gradient_alignment({name: true[p] for name, p in model.named_parameters()}, own, blocks={})
    norms = select(gradient_norms(recording), quantity="total")
    rounding = precision(model, images[:32], loss=lambda output: F.cross_entropy(output, labels[:32]))
    return {
        "gradient norm: first over last block": abs(logarithm(first(norms, "total")) - logarithm(last(norms, "total"))),
        "gradient: rounding in float32": logarithm(first(rounding, "difference")),
        "gradient: cosine with the true one": mean(aligned, "cosine"),
        "branch over shortcut": mean(residual_magnitudes(recording), "ratio"),
        "branch along the descent direction": mean(iterative_inference(recording), "cosine"),
    }


def of_paths(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Signed shares of the gradient at the first fork, by the number of branches."""
    shares = select(path_contributions(recorded(model, images[:32], labels[:32])), quantity="share")
    lengths, values = shares["path_length"].to_numpy(float), shares["value"].to_numpy(float)
    return {
        "mean path length": float(lengths @ values / lengths.max()),
        f"share of paths of at most {plan.SHORT_PATH}": float(values[lengths <= plan.SHORT_PATH].sum()),
    }


def of_stream(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the stream's value."""
    with record(model, keep=True) as recording:
        model(images)
    found, alike = stream_statistics(recording), similarity(recording, recording, debiased=True)
    ends = alike[(alike["depth"] == 0) & (alike["other_depth"] == alike["other_depth"].max())]
    return {
        "branch variance over stream variance": mean(found, "variance_ratio"),
        "stream: effective rank": last(found, "effective_rank"),
        "stream: cosine between positions": last(found, "cosine"),
        "stream: similarity of first and last block": float(ends["value"].item()),
        "stream: linear probe of the last block": last(
            select(linear_probes(recording, labels), split="held-out"), "accuracy"
        ),
    }


def of_batches(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the gradients of small batches."""

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    noise = gradient_noise(model, loss, list(zip(images.split(16), labels.split(16), strict=True)), of="model")
    return {
        "gradient: signal to noise": mean(noise, "signal_to_noise"),
        "gradient: smallest cosine of two batches": mean(noise, "smallest_cosine"),
    }


def of_kernels(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """Of the tangent kernel of the arm's backward, on a few images."""
    true = copy.deepcopy(model)
    set_exact_flows(true)
    kernel = tangent_kernel(true, images[:4], biased=model)
    return {
        "tangent kernel: effective rank": mean(kernel, "effective_rank"),
        "tangent kernel: negative part": mean(kernel, "negative"),
    }


def of_a_step(model: nn.Module, images: Tensor, labels: Tensor) -> Measured:
    """The relative change of blocks' functions by a step of SGD at one rate for all."""
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    F.cross_entropy(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), STEP).step()
    return {"change of blocks by a step": logarithm(mean(update_sizes(model, before, images), "function"))}


def of_a_line(model: nn.Module, batches: Batches) -> Measured:
    """Of gradients at the first fork, for inputs on the line between two images; BatchNorm as in evaluation."""
    copied, images, _ = probing_batch(model, batches)
    recompute_bn_statistics(copied, batches)
    found = gradient_correlation(copied.eval(), images[:2], points=64, lags=(0, 1))
    return {"gradient: correlation along a line": first(select(found, lag=1), "autocorrelation")}


def recorded(model: nn.Module, images: Tensor, labels: Tensor) -> Recording:
    """Of a forward and backward of the mean loss, with tensors."""
    with record(model, keep=True) as recording:
        F.cross_entropy(model(images), labels).backward(retain_graph=True)
    return recording


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """What the last backward left, by parameter."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def mean(found: pd.DataFrame, quantity: str) -> float:
    """Over blocks, those without a value left out."""
    return float(select(found, quantity=quantity)["value"].mean())


def first(found: pd.DataFrame, quantity: str) -> float:
    """Of the first block."""
    return float(select(found, quantity=quantity, depth=0)["value"].item())


def last(found: pd.DataFrame, quantity: str) -> float:
    """Of the last block."""
    return float(select(found, quantity=quantity, depth=found["depth"].max())["value"].item())


def logarithm(value: float) -> float:
    """Base 10; nan of what is not positive."""
    return float(np.log10(value)) if value > 0 else np.nan


@dataclass(frozen=True)
class Settings(ConditionSettings):
    """Every setting of the experiment."""

    depths: tuple[int, ...] = (8, 20, 56, 110)
    """Layers, each 6n + 2."""
    seeds: tuple[int, ...] = (1200, 1201, 1202)
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
        count = sum(len(self.chosen()) * len(size.depths) for size in self.sizes())
        if count < FEWEST:
            raise BadInput(f"{count} networks: a rank correlation needs {FEWEST}; give more --families or --depths")
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
    output = show.live(settings.output(EXPERIMENT))
    parts = [of_size(size, output.below("sizes", f"width{size.width}")) for size in settings.sizes()]
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


def of_size(settings: Settings, output: Output) -> pd.DataFrame:
    """Measure and train all networks of one width: the table of `networks_of`."""
    splits = load_splits(settings.data, (*settings.seeds, *settings.tuning_seeds))
    dataset = splits[settings.seeds[0]]
    runner = ConditionRunner(
        settings, dataset, splits, effort=lambda _: Effort((-3, -2, -1)), outputs=OUTPUTS, task=train_measured
    )
    tables, _, _ = runner.train_at_best_rates(settings.chosen(), output)
    return networks_of(tables, settings, chance=1 - 1 / len(dataset.classes))


def networks_of(tables: Tables, settings: Settings, *, chance: float) -> pd.DataFrame:
    """Of each network and measurement the mean over its seeds ("measured"), and the network's "outcome" beside it; a
    long table: control (the family), arm, first_weights, depth_total, width, measurement, quantity, value.

    The outcome is the part of the gap between chance and the residual network of its size that it closes in test error.
    A run that diverged has chance errors.
    """
    errors = errors_on_test(tables["outcomes"]).groupby(["control", "depth_total"])["value"]
    by_network = (errors.sum() + chance * (len(settings.seeds) - errors.count())) / len(settings.seeds)
    early = select(tables["losses"], step=EARLY).groupby(["control", "depth_total"])["value"].mean()
    measured = tables["measured"].groupby(["control", "depth_total", "measurement"], sort=False)["value"].mean()
    means = measured.reset_index()
    rows: list[dict[str, object]] = []
    for condition in settings.chosen():
        for depth in settings.depths:
            key = condition.name, depth
            about = {"control": condition.name, "arm": condition.arm, "depth_total": depth, "width": settings.width}
            about |= {"first_weights": str(condition.first_weights or "he")}
            residual = by_network[plan.RESIDUAL.name, depth]
            gap = chance - residual if residual < chance else np.nan  # where none learns there is none to close
            outcome = (chance - by_network.get(key, chance)) / gap
            own = select(means, control=condition.name, depth_total=depth)
            values = dict(zip(own["measurement"], own["value"], strict=True))
            values |= {BASELINES[0]: float(depth), BASELINES[1]: float(early.get(key, np.nan))}
            for name, value in values.items():
                for quantity, number in (("measured", value), ("outcome", outcome)):
                    rows.append({**about, "measurement": name, "quantity": quantity, "value": number})
    return table(rows)


def report(found: pd.DataFrame, output: Output) -> None:
    """Write and print the correlations, and say which measurements hold on families that did not choose them."""
    keys = ["control", "depth_total", "width"]
    wide = select(found, quantity="measured").pivot(index=keys, columns="measurement", values="value")
    outcome = select(found, quantity="outcome").groupby(keys)["value"].first()
    networks = wide.assign(outcome=outcome).reset_index().rename(columns={"control": "family"})
    networks["size"] = networks["depth_total"].astype(str) + " x " + networks["width"].astype(str)
    names = [name for name in found["measurement"].unique() if name not in BASELINES]
    tested = held_out(networks, names, baselines=BASELINES)
    correlations = pd.concat([rank_correlations(networks, [*names, *BASELINES]), tested.table], ignore_index=True)
    kinds = correlations["measurement"].map(dict.fromkeys(BASELINES, "baseline")).fillna("measurement")
    correlations = correlations.assign(treatment=kinds)[["treatment", "measurement", "quantity", "value"]]
    output.table("correlations", correlations)
    text = {
        "text_outcomes": outcome_rows(networks, list(found["control"].unique())),
        "text_correlations": correlation_rows(correlations),
        "text_subsets": subset_rows(networks, names),
    }
    for name, rows in text.items():
        output.table(name, show.text_table(rows))
    if np.isfinite(select(correlations, quantity="rho")["value"]).any():
        drawn = pd.concat([correlations, found[found["measurement"].isin(largest(correlations, SCATTERED))]])
        show.save_figure(output, figures.explanations(drawn), drawn, EXPERIMENT)
    console = show.terminal()
    families = networks["family"].nunique()
    titles = {
        "text_outcomes": ("Of the gap between chance and the residual network, closed; depth x width", ""),
        "text_correlations": (
            f"Rank correlation with the gap to chance closed, {len(networks)} networks of {families} families",
            "rho: over all networks, its interval over families; within families; among networks of the same size; "
            "held out: on families that did not choose its sign; chosen: how often it is the best of its half",
        ),
        "text_subsets": (
            "The best of one half of the families on the other half, beside the baselines",
            "chosen: the best of a half; rho: the largest over all, and whose. Subsets were made after the first run",
        ),
    }
    for name, (title, caption) in titles.items():
        show.table(console, text[name], title=title, caption=caption)
    show.files(console, output)
    answer, *others = conclusions(correlations, tested)
    show.end(console, output, answer=answer, remark="\n".join(others))


def largest(correlations: pd.DataFrame, count: int) -> list[str]:
    """The measurements whose correlations are largest, baselines left out."""
    rho = select(correlations, treatment="measurement", quantity="rho").set_index("measurement")["value"]
    return list(rho.abs().nlargest(count).index)


def outcome_rows(networks: pd.DataFrame, families: list[str]) -> show.Rows:
    """By family, in their order, of each size."""
    sizes = networks.sort_values(["width", "depth_total"])["size"].unique()
    wide = networks.pivot(index="family", columns="size", values="outcome").reindex(index=families, columns=sizes)
    return {
        ("", str(family)): {str(size): "-" if value != value else f"{value:.2f}" for size, value in of.items()}
        for family, of in wide.iterrows()
    }


def subset_rows(networks: pd.DataFrame, names: list[str]) -> show.Rows:
    """Of all networks, those with normalisation, and deep ones: what was chosen on half of the families on the other
    half, the baselines there, and the largest correlation."""
    subsets = {
        "all": networks,
        "without skipinit and fixup": networks[~networks["family"].isin([family.name for family in UNNORMALISED])],
        "deeper than 20": networks[networks["depth_total"] > 20],
    }
    rows: show.Rows = {}
    for subset, of in subsets.items():
        tested = held_out(of, names, baselines=BASELINES)
        if not np.isfinite(tested.best).any():
            continue
        rho = {name: spearman(of[name].to_numpy(float), of["outcome"].to_numpy(float)) for name in names}
        top = max((name for name in names if rho[name] == rho[name]), key=lambda name: abs(rho[name]))
        row = {"n": str(len(of)), "chosen": f"{np.nanmean(tested.best):.2f}"}
        row |= {name: f"{np.nanmean(values):.2f}" for name, values in tested.baselines.items()}
        rows["", subset] = {**row, "rho": f"{rho[top]:.2f}", "note": top}
    return rows


def correlation_rows(found: pd.DataFrame) -> show.Rows:
    """By measurement, the largest correlation first."""
    wide = found.pivot(index="measurement", columns="quantity", values="value")
    wide = wide.reindex(wide["rho"].abs().sort_values(ascending=False, na_position="last").index)
    rows: show.Rows = {}
    for name, of in wide.iterrows():
        row = {"rho [95 %]": show.interval(of["rho"], of["family low"], of["family high"])}
        words = ("within", "same size", "held out", "chosen")
        row |= {word: "-" if of[word] != of[word] else f"{of[word]:.2f}" for word in words}
        rows["", str(name)] = {**row, "n": f"{of['n']:.0f}"}
    return rows


def conclusions(found: pd.DataFrame, tested: HeldOut) -> list[str]:
    """What was chosen on half of the families and how it did on the other half, beside the baselines."""
    wide = found.pivot(index="measurement", columns="quantity", values="value")
    if not np.isfinite(tested.best).any():
        return ["Too few networks that differ: no measurement could be tested on families that did not choose it."]
    low, high = np.nanquantile(tested.best, (0.025, 0.975))
    chosen = wide["chosen"].drop(list(BASELINES)).sort_values(ascending=False)
    lines = [
        f"The measurement that is best on half of the families has a rank correlation of {np.nanmean(tested.best):.2f} "
        f"on the other half (95 % of splits: {low:.2f} to {high:.2f}). Chosen most often: {chosen.index[0]}."
    ]
    lines += [f"Baseline {name}: {wide['held out'][name]:.2f}." for name in tested.baselines]
    only = [str(n) for n, of in wide.iterrows() if abs(of["within"]) > 0.5 and not abs(of["between"]) >= 0.3]
    lines.append(f"Predict within families alone: {', '.join(only) or 'none'}.")
    return lines


if __name__ == "__main__":
    run_script("experiments.explanations")
