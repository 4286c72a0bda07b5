"""Short gradient paths, or a simpler residue, in a transformer?

Trains small GPTs (Radford et al. 2019) to predict the next character of Python's own help texts, with shortcuts around
attention and MLPs, without, and with shortcuts that carry no gradient: at both, at attention alone, at MLPs alone.
Beside them: paths of at most two branches; a gradient that keeps its size although no shortcut carries it; no
shortcuts, and blocks that begin near the identity; branches that begin smaller by the root of their number; gradients
that reach the last blocks alone; and training in float64, whose optimiser sees gradients however small.

Each arm takes the learning rate that is best on the validation text, on seeds that are not reported; one that learns
nothing at any is tried at lower ones, too. Writes tables, figures and every run's run.json to OUT/transformer; finished
runs are not repeated.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import figures
from experiments.engine.conditions.controls import NO_CONTROL, Control
from experiments.engine.conditions.gap_closed import HALF, GapClosed, gap_closed
from experiments.engine.conditions.gradient_alignment import alignment
from experiments.engine.reporting import show
from experiments.engine.running import distributed
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_at_least, check_choice, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.compute import AS_WRITTEN, Computing
from experiments.engine.training.data import Arrays, Batches, Dataset
from experiments.engine.training.loop import Moment, context_of
from experiments.engine.training.optimisation import Training, make_optimiser
from experiments.engine.training.settings import RunSettings, check_tuning_seeds
from experiments.engine.training.train_run import probing_batch, train_run
from models import GPT, PLAIN, RESIDUAL, STOP_GRADIENT, Flow, gpt
from models.transformer import TransformerWeights
from probes import Recording, gradient_norms, path_contributions, read_out, record, stream_statistics, update_sizes
from probes.tables import table

EXPERIMENT = "transformer"
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
MEASURED = ("gradients", "paths", "kinds", "alignment", "updates", "stream", "read_out")
PROBED = 8
"""Sequences of the training text on which a network is measured."""
STEP = math.sqrt(10)
"""From a learning rate at an end of those that are tried first to the next one."""
FURTHER = 2
"""So many more rates are tried at most."""
MARGIN = 0.1
"""Nats a character: a smaller difference counts as none."""

ROOT = math.sqrt(1 / 2)
KEPT = Flow(ROOT, ROOT, shortcut_gradient=0.0, branch_gradient=ROOT / (1 - ROOT))
"""x + F(x), both times root 1/2. A branch that passes its normalised input on leads the stream to the size r = root 1/2
(r + 1), and divides its gradient by r: times r, it keeps its size without the shortcut's."""
LAST = Flow(shortcut_gradient=0.0, branch_gradient=0.0)
"""Nothing before this junction learns by it; its own branch does."""
UNSEEN = 1e-100
"""In place of Adam's 1e-8, in float64, where squares reach down to 1e-308: no gradient above 1e-99 is too small."""


@dataclass(frozen=True)
class Wiring:
    """What an arm is: flows, first weights, the paths that its gradient takes, and how exactly it is computed."""

    attention: Flow = RESIDUAL
    mlp: Flow = RESIDUAL
    first_weights: TransformerWeights = "ordinary"
    control: Control = NO_CONTROL
    learning: int | None = None
    """Blocks, from the last, that the gradient reaches. All others get zeros; the token embedding, which is the
    read-out, too, learns as that alone: as with stop-gradient, where what comes through the blocks has vanished."""
    precision: Literal["float32", "float64"] = "float32"
    epsilon: float = 1e-8
    """What Adam adds to the gradient's size before it divides by it."""

    def attention_flows(self, layers: int) -> list[Flow]:
        """Of each block."""
        flows = [self.attention] * layers
        if self.learning is not None:
            flows[layers - self.learning] = LAST
        return flows


def in_float64(wiring: Wiring) -> Wiring:
    """The same wiring, trained where the optimiser sees gradients of any size."""
    return replace(wiring, precision="float64", epsilon=UNSEEN)


STOPPED = Wiring(STOP_GRADIENT, STOP_GRADIENT)
STOPPED_ATTENTION, STOPPED_MLP = Wiring(attention=STOP_GRADIENT), Wiring(mlp=STOP_GRADIENT)
SCALED_STOPPED = Wiring(STOP_GRADIENT, STOP_GRADIENT, "depth-scaled")
WIRINGS = {
    "residual": Wiring(),
    "stop-gradient": STOPPED,
    "stop-gradient-attention": STOPPED_ATTENTION,
    "stop-gradient-mlp": STOPPED_MLP,
    "kept-size": Wiring(KEPT, KEPT, "near-identity"),
    "plain": Wiring(PLAIN, PLAIN),
    "near-identity": Wiring(PLAIN, PLAIN, "near-identity"),
    "at-most-2": Wiring(control=Control(at_most=2)),
    "depth-scaled": Wiring(first_weights="depth-scaled"),
    "depth-scaled-stop-gradient": SCALED_STOPPED,
    "only-last-2": Wiring(learning=2),
    "only-last-4": Wiring(learning=4),
    "residual-float64": in_float64(Wiring()),
    "stop-gradient-float64": in_float64(STOPPED),
    "stop-gradient-attention-float64": in_float64(STOPPED_ATTENTION),
    "stop-gradient-mlp-float64": in_float64(STOPPED_MLP),
    "depth-scaled-stop-gradient-float64": in_float64(SCALED_STOPPED),
}
DIFFERENCES = {
    "depth-scaled-stop-gradient": "stop-gradient",
    "only-last-2": "stop-gradient",
    "only-last-4": "stop-gradient",
    "stop-gradient-float64": "residual-float64",
    "stop-gradient-attention-float64": "residual-float64",
    "stop-gradient-mlp-float64": "residual-float64",
    "depth-scaled-stop-gradient-float64": "residual-float64",
}
"""What arms are compared with, beside `residual`."""
GAPS = {
    "stop-gradient-attention": "stop-gradient",
    "stop-gradient-mlp": "stop-gradient",
    "kept-size": "stop-gradient",
    "at-most-2": "stop-gradient",
    "only-last-2": "stop-gradient",
    "only-last-4": "stop-gradient",
    "stop-gradient-float64": "stop-gradient",
    "stop-gradient-attention-float64": "stop-gradient-attention",
    "stop-gradient-mlp-float64": "stop-gradient-mlp",
    "depth-scaled-stop-gradient-float64": "depth-scaled-stop-gradient",
    "near-identity": "plain",
}
"""Of the gap between which arm and `residual` each arm closes a part."""
DRAWN = ("residual", "stop-gradient", "kept-size", "plain", "near-identity", "at-most-2", "only-last-2")
"""The arms of the figures over depth; the tables have all."""


@dataclass(frozen=True)
class Settings(RunSettings):
    """Every setting of the experiment."""

    arms: tuple[str, ...] = tuple(WIRINGS)
    """Any of residual, stop-gradient, stop-gradient-attention, stop-gradient-mlp, kept-size, plain, near-identity,
    at-most-2, depth-scaled, depth-scaled-stop-gradient, only-last-2, only-last-4, residual-float64,
    stop-gradient-float64, stop-gradient-attention-float64, stop-gradient-mlp-float64,
    depth-scaled-stop-gradient-float64."""
    layers: int = 12
    """Blocks of attention and an MLP; each has two junctions."""
    width: int = 64
    """Features of a token, a multiple of --heads."""
    heads: int = 4
    """Of attention."""
    context: int = 64
    """Characters of a sequence."""
    text: Path | None = None
    """A text file to learn from (its bytes count as characters); by default Python's help, `pydoc_data.topics`."""
    characters: int | None = None
    """Use only so many characters, from the beginning."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Highest learning rates that are tried (--learning-rate is refused): each arm takes the best on the validation
    text. An arm whose best is at an end is tried at up to two more beyond it; one that learns nothing at any, at up to
    two lower ones. One alone is taken untried."""
    seeds: tuple[int, ...] = (40, 41, 42, 43, 44)
    """Reported seeds; one decides the first weights and the order of the data, alike in all arms."""
    tuning_seeds: tuple[int, ...] = (100,)
    """Seeds whose runs choose learning rates, by validation, and are never reported, nor evaluated on the test text."""
    budgets: tuple[int, ...] = (1,)
    """How many times --epochs; beyond 1 with the longer arms, rates and seeds, in a folder of its own."""
    longer_arms: tuple[str, ...] = ("residual", "stop-gradient", "kept-size", "plain", "near-identity")
    """Arms of budgets beyond 1."""
    longer_rates: tuple[float, ...] = (1e-3, 3e-3)
    """Rates that are tried first at budgets beyond 1."""
    longer_seeds: int = 3
    """How many of the reported seeds, from the first, at budgets beyond 1."""
    training: Training = field(
        default_factory=lambda: Training(epochs=2, batch_size=32, optimiser="adamw", weight_decay=0.1)
    )

    def check(self) -> None:
        """Raise BadInput for settings that cannot run, before anything is read or written."""
        super().check()
        if distributed.count() > 1:
            raise BadInput("every network is trained in one process: run this without torchrun, and with --workers")
        if self.training.learning_rate != Training.learning_rate:
            raise BadInput(
                f"--learning-rate {self.training.learning_rate:g}: give --rates instead; one alone is taken untried"
            )
        for flag, given in (("--layers", self.layers), ("--heads", self.heads), ("--context", self.context)):
            check_at_least(flag, given, 1)
        if self.width < 1 or self.width % self.heads:
            raise BadInput(f"--width {self.width}: give a multiple of --heads, {self.heads}")
        for flag, arms in (("--arms", self.arms), ("--longer-arms", self.longer_arms)):
            check_unique(flag, arms)
            for arm in arms:
                check_choice(flag, arm, tuple(WIRINGS))
                if (WIRINGS[arm].learning or 0) > self.layers:
                    raise BadInput(f"--layers {self.layers}: {arm} needs more; leave that arm out ({flag})")
        for flag, rates in (("--rates", self.rates), ("--longer-rates", self.longer_rates)):
            check_unique(flag, rates)
            for rate in rates:
                if not 0 < rate < math.inf:
                    raise BadInput(f"{flag} {rate}: give finite numbers above 0")
        check_unique("--budgets", self.budgets)
        for budget in self.budgets:
            check_at_least("--budgets", budget, 1)
        check_at_least("--longer-seeds", self.longer_seeds, 1)
        check_tuning_seeds(self.tuning_seeds, self.seeds)

    def at(self, budget: int) -> "Settings":
        """The settings of one budget, with its arms, rates and seeds."""
        if budget == 1:
            return self
        training = replace(self.training, epochs=budget * self.training.epochs)
        seeds = self.seeds[: self.longer_seeds]
        return replace(self, arms=self.longer_arms, rates=self.longer_rates, seeds=seeds, training=training)


QUICK = Settings(
    arms=DRAWN,
    layers=4,
    width=32,
    characters=60_000,
    rates=(3e-3,),
    seeds=(40,),
    training=Training(epochs=1, batch_size=32, optimiser="adamw", weight_decay=0.1),
)


def main(settings: Settings) -> None:
    """Run the grid of each budget and report it."""
    settings.check()
    text = read_text(settings.text, context=settings.context, characters=settings.characters)
    for budget in settings.budgets:
        grid = Grid(settings.at(budget), text, budget)
        name = EXPERIMENT if budget == 1 else f"{EXPERIMENT}/budget{budget}"
        output = show.live(settings.output(name))
        rates = grid.best_rates(output.below("tuning"))
        tables, diverged = grid.run(grid.runs(rates), output)
        report(tables, diverged, rates, grid, output)


# The text


def read_text(file: Path | None, *, context: int, characters: int | None = None) -> Dataset:
    """A text file, or Python's own help texts, in sequences: a data set whose "images" are (N, context) numbers of
    characters, and whose labels are those of the characters that follow; its classes are the characters that occur.

    Training, validation and test text stand one behind the other in it. BadInput where it is not there or too short.
    """
    if file is None:
        from pydoc_data.topics import topics

        title, content = "pydoc_data.topics", "\n".join(topics[name] for name in sorted(topics)).encode()
    elif not file.is_file():
        raise BadInput(f"--text {file}: there is no such file")
    else:
        title, content = file.name, file.read_bytes()
    if characters is not None:
        content = content[: max(0, characters)]
    least = math.ceil((context + 1) / min(SHARES.values()))
    if len(content) < least:
        raise BadInput(
            f"{title} has {len(content)} characters: sequences of {context} need {least}, for each part to have one; "
            "give more text or --characters, or a smaller --context"
        )
    alphabet = bytes(sorted(set(content)))
    numbers = np.searchsorted(np.frombuffer(alphabet, np.uint8), np.frombuffer(content, np.uint8)).astype(np.int64)
    ends = np.round(np.cumsum(list(SHARES.values()))[:-1] * len(numbers)).astype(int)
    splits = dict(zip(SHARES, (cut(part, context) for part in np.split(numbers, ends)), strict=True))
    digest = hashlib.sha256(content).hexdigest()[:16]
    title = f"{title} ({len(content):,} characters, SHA-256 {digest})"
    return Dataset(title, tuple(map(chr, alphabet)), splits, augment="none", normalise="none")


def cut(numbers: np.ndarray, context: int) -> Arrays:
    """(N, context) characters, and the one that follows each."""
    end = (len(numbers) - 1) // context * context
    first, following = numbers[:end], numbers[1 : end + 1]
    return first.reshape(-1, context), following.reshape(-1, context)


def frequency_loss(text: Dataset, split: str) -> float:
    """Nats a character of one who knows how often each character follows in the training text, and nothing else."""
    count = np.bincount(text.splits["train"][1].flatten(), minlength=len(text.classes)) + 1  # none is impossible
    return float(-np.log(count / count.sum())[text.splits[split][1]].mean())


# A run


@dataclass(frozen=True)
class TextRecipe:
    """Everything that decides what a run computes, beside its arm, depth and seed."""

    wiring: Wiring
    width: int
    heads: int
    context: int
    data: str
    """The text's digest; another text is refused."""
    training: Training
    device: str
    evaluated: tuple[str, ...]
    computing: Computing = AS_WRITTEN
    processes: int = 1
    flush_denormal: bool = True
    """Numbers below float32's normal range become 0: vanished gradients would slow a CPU down sixfold. In float64
    nothing is as small."""


def make_network(run: Run, text: Dataset) -> GPT:
    """The run's network at its first weights."""
    recipe: TextRecipe = run.recipe
    torch.manual_seed(run.seed)
    model = gpt(
        run.depth,
        width=recipe.width,
        heads=recipe.heads,
        vocabulary=len(text.classes),
        context=recipe.context,
        attention=recipe.wiring.attention_flows(run.depth),
        mlp=recipe.wiring.mlp,
        first_weights=recipe.wiring.first_weights,
    )
    return model.to(recipe.device, getattr(torch, recipe.wiring.precision))


def optimiser_of(model: nn.Module, training: Training, *, epsilon: float) -> torch.optim.Optimizer:
    """The training's optimiser with another constant beside the gradient's size."""
    optimiser = make_optimiser(model, training)
    for group in optimiser.param_groups:
        group["eps"] = epsilon
    return optimiser


def next_character(outputs: Tensor, given: Tensor, following: Tensor) -> Tensor:
    """Nats a character."""
    return F.cross_entropy(outputs.flatten(0, 1), following.flatten())


@contextmanager
def denormals(*, flushed: bool) -> Iterator[None]:
    """Whether numbers below the normal range count as 0 inside; outside they do not."""
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def train_gpt(run: Run, checkpoint_file: Path | None = None, *, text: Dataset) -> Outcome:
    """Train a run's network; a reported one is measured before its first step and in the end."""
    recipe: TextRecipe = run.recipe
    model = make_network(run, text)
    measures: dict[str, Any] = {"measure": partial(measure, run=run)} if run.outputs else {}
    with denormals(flushed=recipe.flush_denormal):
        return train_run(
            run,
            checkpoint_file,
            dataset=text,
            model=model,
            backward=recipe.wiring.control.prepare(model, seed=run.seed),
            loss=next_character,
            make_optimiser=partial(optimiser_of, epsilon=recipe.wiring.epsilon),
            evaluate=evaluate,
            **measures,
        )


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, split: str) -> dict[str, float]:
    """The mean loss over a part of the text, in nats a character; the network is then in eval mode."""
    model.eval()
    total, size = 0.0, batches.size(split)
    for given, following in batches.in_turn(split, torch.arange(size).split(128)):
        total += next_character(model(given), given, following).item() * len(given)
    return {"loss": total / size}


def measure(model: nn.Module, batches: Batches, epoch: int, last: bool, *, run: Run) -> Tables:
    """Before the first step and in the end, on a few training sequences: gradient norms and the gradient by path length
    (of all paths, also where the arm's gradient takes short ones alone), the cosine of the arm's gradient with the true
    one, what a step changes, and the stream and what the head reads out of it."""
    if epoch and not last:
        return {}
    network, given, following = probing_batch(model, batches, most=PROBED)
    assert isinstance(network, GPT)
    with record(network, keep=True) as recording:
        next_character(network(given), given, following).backward(retain_graph=True)
    return {
        "gradients": gradient_norms(recording),
        "paths": path_contributions(recording),
        "kinds": paths_by_kind(recording),
        "stream": stream_statistics(recording),
        "read_out": read_out(recording, lambda stream: network.head(network.norm(stream)), following),
        "alignment": alignment(
            network, run.recipe.wiring.control, given, following,
            seed=run.seed, moment=Moment(step=0, epoch=0), loss=next_character,
        ),
        "updates": updates(network, given, following, run=run),
    }  # fmt: skip


def paths_by_kind(recording: Recording) -> pd.DataFrame:
    """The gradient by its paths' branches of both kinds together: `path_length`, and the attentions among them in
    `count` (the others are MLPs), of the quantities of `path_contributions`."""
    found = path_contributions(recording, by=lambda junction: junction.name.rpartition(".")[2])
    return found.drop(columns=["mlp"]).rename(columns={"attention": "count"})


def updates(model: GPT, given: Tensor, following: Tensor, *, run: Run) -> pd.DataFrame:
    """What the first step of a new optimiser, at the run's highest learning rate, changes in each block's weights and
    function; the step is taken."""
    wiring: Wiring = run.recipe.wiring
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    optimiser = optimiser_of(model, run.recipe.training, epsilon=wiring.epsilon)
    backward = wiring.control.prepare(model, seed=run.seed)
    optimiser.zero_grad()
    with context_of(backward, model):
        backward(model, next_character(model(given), given, following), Moment(step=0, epoch=0))
    optimiser.step()
    return update_sizes(model, before, given)


# The grid


@dataclass(frozen=True)
class Grid:
    """The runs of one budget."""

    settings: Settings
    """With the arms, rates, seeds and epochs of the budget."""
    text: Dataset
    budget: int

    def run(self, runs: Sequence[Run], output: Output, *, then: str = "") -> tuple[Tables, list[Run]]:
        """Train what the store of all budgets lacks; all tables, and the runs that diverged."""
        store = self.settings.out / EXPERIMENT / "runs"
        task, execution = partial(train_gpt, text=self.text), self.settings.execution
        return run_grid(runs, task, output, execution=execution, store=store, then=then)

    def run_of(self, arm: str, rate: float, seed: int, *, tuning: bool = False) -> Run:
        """One run; its depth is the number of layers. One that tunes is neither measured nor evaluated on test."""
        settings, wiring = self.settings, WIRINGS[arm]
        sizes: dict[str, Any] = {"width": settings.width, "heads": settings.heads, "context": settings.context}
        recipe = TextRecipe(
            wiring,
            **sizes,
            data=self.text.digest,
            training=replace(settings.training, learning_rate=rate),
            device=settings.device,
            evaluated=("validation",) if tuning else ("validation", "test"),
        )
        batch = f"batch {settings.training.batch_size}, {settings.device}, {wiring.precision}"
        return Run(
            EXPERIMENT,
            arm,
            settings.layers,
            seed,
            recipe,
            outputs=() if tuning else MEASURED,
            labels={"learning_rate": rate, "budget": self.budget},
            about={"title": self.text.title},
            work=settings.layers * settings.training.epochs,
            pace=f"{sizes}, {batch}, {self.text.digest}",
        )

    def runs(self, rates: Mapping[str, float]) -> list[Run]:
        """A run for each arm at its rate and each reported seed."""
        return [self.run_of(arm, rate, seed) for arm, rate in rates.items() for seed in self.settings.seeds]

    def best_rates(self, output: Output) -> dict[str, float]:
        """By arm, the learning rate that is best on the tuning seeds' validation text; the search goes to the output.

        An arm whose best rate is at an end of those tried is tried beyond it, at two more at most. So is one that
        has not learned at any, beyond the lowest: at chance, rates cannot be told apart, and lower ones may train. An
        arm without a rate at which no seed diverged takes the lowest.
        """
        settings = self.settings
        if len(settings.rates) == 1:
            return dict.fromkeys(settings.arms, settings.rates[0])
        tried, chance = {arm: set(settings.rates) for arm in settings.arms}, frequency_loss(self.text, "validation")
        while True:
            runs = [
                self.run_of(arm, rate, seed, tuning=True)
                for arm, rates in tried.items()
                for rate in sorted(rates)
                for seed in settings.tuning_seeds
            ]
            tables, _ = self.run(runs, output, then="further rates if need be, and runs at the best")
            found = best_rates(tables["outcomes"], seeds=len(settings.tuning_seeds)) if "outcomes" in tables else {}
            best = {arm: found.get(arm, (min(rates), math.inf)) for arm, rates in tried.items()}
            further = {
                arm: next_rate(tried[arm], best=rate if loss < chance - MARGIN else None, first=len(settings.rates))
                for arm, (rate, loss) in best.items()
            }
            if not any(further.values()):
                return {arm: rate for arm, (rate, _) in best.items()}
            for arm, rate in further.items():
                tried[arm] |= {rate} if rate else set()


def best_rates(outcomes: pd.DataFrame, *, seeds: int) -> dict[str, tuple[float, float]]:
    """By arm, the learning rate of the lowest mean validation loss, of those at which no seed diverged, and this loss;
    arms without such a rate are left out."""
    rows = select(outcomes, split="validation", quantity="loss")
    found = rows.groupby(["arm", "learning_rate"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    found = found[found["count"] == seeds]
    best = found.loc[found.groupby("arm", sort=False)["mean"].idxmin()]
    return dict(zip(best["arm"], zip(best["learning_rate"], best["mean"], strict=True), strict=True))


def next_rate(tried: set[float], *, best: float | None, first: int) -> float | None:
    """The rate to try next, to three digits: beyond the end at which the best is, or beyond the lowest where none has
    learned, unless enough have been added to the first ones."""
    best = min(tried) if best is None else best
    if best not in (min(tried), max(tried)) or len(tried) - first >= FURTHER:
        return None
    return float(f"{best * STEP if best == max(tried) else best / STEP:.3g}")


# The report


def report(tables: Tables, diverged: list[Run], rates: Mapping[str, float], grid: Grid, output: Output) -> None:
    """Draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output, advice="Lower --rates may help."):
        return
    losses = final_losses(tables["outcomes"])
    changes, gaps = differences(losses), gaps_closed(losses)
    output.table("scores", score_table(losses, changes, gaps, rates, grid))
    drawings = {
        "losses": (
            partial(figures.conditions, quantity="loss", legend=False),
            tables["outcomes"].assign(control=tables["outcomes"]["arm"]),
        ),
        "gradient_norms": (figures.gradient_norms, among_drawn(tables["gradients"])),
        "path_lengths": (figures.path_lengths, among_drawn(tables["paths"])),
        "alignment": (figures.alignment, among_drawn(tables["alignment"])),
        "stream": (figures.stream, among_drawn(pd.concat([tables["stream"], tables["read_out"]], ignore_index=True))),
    }
    for name, (draw, rows) in drawings.items():
        show.save_figure(output, draw(rows), rows, name)
    readings = {"above": "worse", "below": "better", "within": "none"}
    made = {f"{arm} - {other}": show.decision(found, MARGIN, readings) for (arm, other), found in changes.items()}
    made |= {
        f"{arm}: of the gap from {GAPS[arm]}": (show.interval(gap.mean, gap.low, gap.high), f"{HALF}", gap.recovers)
        for arm, gap in gaps.items()
    }
    rows = loss_rows(losses, rates, changes, gaps)
    output.table("text_losses", show.text_table(rows))
    title = "Nats a character of the test text: mean ± sd over n seeds; differences and gaps [95 % interval]"
    show.table(console, rows, title=title)
    show.diverged(console, diverged)
    show.files(console, output)
    if made:
        show.decisions(console, made, title="test loss, nats a character, paired by seed")
    size = f"{grid.settings.layers} layers, {grid.settings.training.epochs} epochs"
    remark = f"{grid.text.title}, {size}. One text, one size of network, each arm's best learning rate."
    show.end(console, output, remark=remark)


def among_drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the arms that are drawn over depth; all where none of those is there."""
    some = rows[rows["arm"].isin(DRAWN)]
    return (some if len(some) else rows).reset_index(drop=True)


def final_losses(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row a seed, a column an arm: nats a character of the test text."""
    rows = select(outcomes, split="test", quantity="loss")
    return rows.pivot(index="seed", columns="arm", values="value").reindex(columns=list(dict.fromkeys(rows["arm"])))


def differences(losses: pd.DataFrame) -> dict[tuple[str, str], Estimate]:
    """Of each arm, its test loss minus residual's and minus that of the arm it is compared with, paired by seed."""
    arms = list(map(str, losses))
    pairs = [(arm, other) for arm in arms for other in ("residual", DIFFERENCES.get(arm, "residual")) if arm != other]
    return {
        (arm, other): estimate((losses[arm] - losses[other]).dropna().to_numpy())
        for arm, other in pairs
        if other in arms
    }


def gaps_closed(losses: pd.DataFrame) -> dict[str, GapClosed]:
    """Of each arm of `GAPS`, (worse - arm) / (worse - residual) of test losses."""
    found = {}
    for arm, worse in GAPS.items():
        if {arm, worse, "residual"} <= set(losses):
            three = losses[[worse, arm, "residual"]].dropna().to_numpy().T
            found[arm] = gap_closed(*three)
    return found


def score_table(
    losses: pd.DataFrame,
    changes: Mapping[tuple[str, str], Estimate],
    gaps: Mapping[str, GapClosed],
    rates: Mapping[str, float],
    grid: Grid,
) -> pd.DataFrame:
    """A long table: arm, learning_rate, budget, depth_total, outcome ("test loss", "test loss - " another arm's, "gap
    closed from" another arm), quantity (mean, low, high, n; of gaps R, R low, R high and the gap), value."""
    rows = list[dict[str, object]]()
    for arm in map(str, losses):
        about = {"arm": arm, "learning_rate": rates[arm], "budget": grid.budget, "depth_total": grid.settings.layers}
        rows += estimate(losses[arm].dropna().to_numpy()).rows(**about, outcome="test loss")
        for (one, other), found in changes.items():
            rows += found.rows(**about, outcome=f"test loss - {other}") if one == arm else []
        if arm in gaps:
            numbers = gaps[arm].numbers.items()
            outcome = f"gap closed from {GAPS[arm]}"
            rows += [{**about, "outcome": outcome, "quantity": name, "value": value} for name, value in numbers]
    return table(rows)


def loss_rows(
    losses: pd.DataFrame,
    rates: Mapping[str, float],
    changes: Mapping[tuple[str, str], Estimate],
    gaps: Mapping[str, GapClosed],
) -> show.Rows:
    """By arm: its rate, its test loss, that against residual, and the part of a gap that it closes."""
    rows = {}
    for arm in map(str, losses):
        of_seeds = losses[arm].dropna()
        rows["", arm] = {
            "rate": f"{rates[arm]:g}",
            "test loss": show.mean_sd(of_seeds),
            "- residual": show.estimate(changes.get((arm, "residual"))),
            "gap closed": show.interval(gaps[arm].mean, gaps[arm].low, gaps[arm].high) if arm in gaps else "",
            "from": GAPS[arm] if arm in gaps else "",
            "n": str(len(of_seeds)),
        }
    return rows


if __name__ == "__main__":
    run_script("experiments.transformer")
