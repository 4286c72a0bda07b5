"""Short gradient paths, or a simpler residue, in a transformer?

Trains small GPTs (Radford et al. 2019) to predict the next character of Python's own help texts, with shortcuts around
attention and MLPs, without, and with shortcuts that carry no gradient: at both, at attention alone, at MLPs alone.
Beside them: paths of at most two branches; a gradient that keeps its size although no shortcut carries it; no
shortcuts, and blocks that begin near the identity; and branches that begin smaller by the root of their number.

Each arm takes the learning rate that is best on the validation text. Writes tables, figures and every run's run.json to
OUT/transformer; finished runs are not repeated.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput, check_at_least, check_choice, check_unique
from experiments.engine.running.output import Output
from experiments.engine.running.run import Outcome, Run, Tables
from experiments.engine.running.workers import Execution
from experiments.engine.statistics.estimates import Estimate, estimate
from experiments.engine.statistics.long_tables import select
from experiments.engine.training.data import Batches
from experiments.engine.training.loop import Diverged, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import check_seeds
from experiments.engine.training.train_run import evaluations
from models import GPT, PLAIN, RESIDUAL, STOP_GRADIENT, Flow, gpt
from models.transformer import TransformerWeights
from probes import gradient_norms, limit_paths, path_contributions, record
from probes.tables import table

EXPERIMENT = "transformer"
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
PROBED = 8
"""Sequences of the training text on which gradients are measured."""

HALF = math.sqrt(1 / 2)
KEPT = Flow(HALF, HALF, shortcut_gradient=0.0, branch_gradient=HALF / (1 - HALF))
"""x + F(x), both times root 1/2. A branch that passes its normalised input on leads the stream to the size r = root 1/2
(r + 1), and divides its gradient by r: times r, it keeps its size without the shortcut's."""


@dataclass(frozen=True)
class Wiring:
    """What an arm is: flows, first weights, and the paths that its gradient may take."""

    attention: Flow = RESIDUAL
    mlp: Flow = RESIDUAL
    first_weights: TransformerWeights = "ordinary"
    at_most: int | None = None
    """Branches of the longest path that carries gradient; None: all paths do."""

    def context(self) -> "partial[AbstractContextManager[object]] | None":
        """Of a network, the context that its training needs; None if it needs none."""
        return None if self.at_most is None else partial(limit_paths, at_most=self.at_most)


WIRINGS = {
    "residual": Wiring(),
    "stop-gradient": Wiring(STOP_GRADIENT, STOP_GRADIENT),
    "stop-gradient-attention": Wiring(attention=STOP_GRADIENT),
    "stop-gradient-mlp": Wiring(mlp=STOP_GRADIENT),
    "kept-size": Wiring(KEPT, KEPT, "near-identity"),
    "plain": Wiring(PLAIN, PLAIN),
    "near-identity": Wiring(PLAIN, PLAIN, "near-identity"),
    "at-most-2": Wiring(at_most=2),
    "depth-scaled": Wiring(first_weights="depth-scaled"),
    "depth-scaled-stop-gradient": Wiring(STOP_GRADIENT, STOP_GRADIENT, "depth-scaled"),
}


@dataclass(frozen=True)
class Settings:
    """Every setting of the experiment."""

    arms: tuple[str, ...] = tuple(WIRINGS)
    """Any of residual, stop-gradient, stop-gradient-attention, stop-gradient-mlp, kept-size, plain, near-identity,
    at-most-2, depth-scaled, depth-scaled-stop-gradient."""
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
    """Highest learning rates, instead of --learning-rate: each arm takes the best on the validation text."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds, by number; one decides the first weights and the order of the data, alike in all arms."""
    training: Training = field(
        default_factory=lambda: Training(epochs=2, batch_size=32, optimiser="adamw", weight_decay=0.1)
    )
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    execution: Execution = field(default_factory=Execution)
    out: Path = Path("results")
    """The folder of all results."""
    quick: bool = False
    """A first look: defaults that take less than a minute."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """Verbosity: warnings alone; progress as well; every run that is already finished, too."""

    def check(self) -> None:
        """Raise BadInput for settings that cannot run, before anything is read or written."""
        check_unique("--arms", self.arms)
        for arm in self.arms:
            check_choice("--arms", arm, tuple(WIRINGS))
        for flag, given in (("--layers", self.layers), ("--heads", self.heads), ("--context", self.context)):
            check_at_least(flag, given, 1)
        if self.width < 1 or self.width % self.heads:
            raise BadInput(f"--width {self.width}: give a multiple of --heads, {self.heads}")
        check_unique("--rates", self.rates)
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise BadInput(f"--rates {rate}: give finite numbers above 0")
        check_seeds("--seeds", self.seeds)
        self.training.check()
        self.execution.check(self.device)


QUICK = Settings(
    layers=4,
    width=32,
    characters=60_000,
    rates=(3e-3,),
    seeds=(0,),
    training=Training(epochs=1, batch_size=32, optimiser="adamw", weight_decay=0.1),
)


def main(settings: Settings) -> None:
    """Run the grid and report it."""
    settings.check()
    text = read_text(settings.text, context=settings.context, characters=settings.characters)
    output = Output(settings.out / EXPERIMENT, dry_run=settings.execution.dry_run)
    runs = make_runs(settings, text)
    tables, diverged = run_grid(runs, partial(train_gpt, text=text), output, execution=settings.execution)
    report(tables, diverged, text, settings, output)


# The text


@dataclass(frozen=True)
class Text:
    """A text in parts, each cut into sequences that follow one another."""

    title: str
    """As the report names it."""
    alphabet: bytes
    """The bytes that occur, in order; a character's number is its place in it."""
    parts: Mapping[str, np.ndarray]
    """train, validation, test: numbers of characters, one part behind the other in the text."""
    context: int
    """Characters of a sequence."""

    @cached_property
    def digest(self) -> str:
        """A fingerprint of the text and of how it is cut."""
        digest = hashlib.sha256(repr((self.alphabet, self.context)).encode())
        for part in self.parts.values():
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]

    def sequences(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(N, context) characters, and the one that follows each."""
        numbers = self.parts[part]
        end = (len(numbers) - 1) // self.context * self.context
        first, following = numbers[:end], numbers[1 : end + 1]
        return first.reshape(-1, self.context), following.reshape(-1, self.context)


def read_text(file: Path | None, *, context: int, characters: int | None = None) -> Text:
    """A text file, or Python's own help texts; BadInput where it is not there or too short."""
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
    digest = hashlib.sha256(content).hexdigest()[:16]
    parts = dict(zip(SHARES, np.split(numbers, ends), strict=True))
    return Text(f"{title} ({len(content):,} characters, SHA-256 {digest})", alphabet, parts, context)


class TextBatches(Batches):
    """A text's sequences on a device."""

    def __init__(self, text: Text, device: torch.device) -> None:
        self.device, self.augment = device, "none"
        cut = {part: text.sequences(part) for part in text.parts}
        self.splits = {
            part: (torch.tensor(given, device=device), torch.tensor(following, device=device))
            for part, (given, following) in cut.items()
        }

    def get(self, split: str, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Characters (N, T), and those that follow (N, T)."""
        given, following = self.splits[split]
        assert isinstance(given, Tensor)  # no images in files
        indices = indices.to(self.device) if isinstance(indices, Tensor) else indices
        return given[indices], following[indices]


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
    flush_denormal: bool = True
    """Numbers below float32's normal range become 0: vanished gradients would slow a CPU down sixfold."""


def make_runs(settings: Settings, text: Text) -> list[Run]:
    """A run for each arm, rate and seed; its depth is the number of layers."""
    sizes: dict[str, Any] = {"width": settings.width, "heads": settings.heads, "context": settings.context}
    return [
        Run(
            EXPERIMENT,
            arm,
            settings.layers,
            seed,
            TextRecipe(
                WIRINGS[arm],
                **sizes,
                data=text.digest,
                training=replace(settings.training, learning_rate=rate),
                device=settings.device,
            ),
            outputs=("outcomes", "curves", "losses", "gradients", "paths"),
            labels={"learning_rate": rate},
            about={"title": text.title},
            work=settings.layers * settings.training.epochs,
            pace=f"{sizes}, batch {settings.training.batch_size}, {settings.device}, {text.digest}",
        )
        for arm in settings.arms
        for rate in settings.rates
        for seed in settings.seeds
    ]


def make_network(run: Run, text: Text) -> GPT:
    """The run's network at its first weights."""
    recipe: TextRecipe = run.recipe
    torch.manual_seed(run.seed)
    model = gpt(
        run.depth,
        width=recipe.width,
        heads=recipe.heads,
        vocabulary=len(text.alphabet),
        context=recipe.context,
        attention=recipe.wiring.attention,
        mlp=recipe.wiring.mlp,
        first_weights=recipe.wiring.first_weights,
    )
    return model.to(recipe.device)


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


def train_gpt(run: Run, checkpoint_file: Path | None = None, *, text: Text) -> Outcome:
    """Train a run's network: curves, each step's loss, final losses, and gradients first and last.

    A run that is killed starts over: it takes minutes. Raises ValueError for another text than the recipe's.
    """
    recipe: TextRecipe = run.recipe
    if recipe.data != text.digest:
        raise ValueError(f"{run.name}: its recipe says data {recipe.data!r}, and here it is {text.digest!r}")
    with denormals(flushed=recipe.flush_denormal):
        return _trained(run, text)


def _trained(run: Run, text: Text) -> Outcome:
    recipe: TextRecipe = run.recipe
    model, batches = make_network(run, text), TextBatches(text, torch.device(recipe.device))
    gradients = [measure(model, batches, epoch=0)]
    losses: list[float] = []
    curves: list[dict[str, object]] = []
    outcome = Outcome()
    context = recipe.wiring.context()
    epochs = train(model, batches, recipe.training, seed=run.seed, loss=next_character, gradient_context=context)
    try:
        for epoch, of_epoch in enumerate(epochs, 1):
            losses += of_epoch.tolist()
            found = {"train": of_epoch.mean().item(), "validation": evaluate(model, batches, "validation")["loss"]}
            curves += [{"epoch": epoch, "split": split, "quantity": "loss", "value": found[split]} for split in found]
        gradients.append(measure(model, batches, epoch=recipe.training.epochs))
        outcome.tables["outcomes"] = evaluations(model, batches, evaluate, splits=("validation", "test"))
    except Diverged as end:
        outcome.diverged_at = end.step
    if curves:
        by_step = pd.DataFrame({"step": range(1, len(losses) + 1), "value": losses})
        outcome.tables |= {"curves": table(curves), "losses": by_step.assign(split="train", quantity="loss")}
    for name in ("gradients", "paths"):
        outcome.tables[name] = pd.concat([of_moment[name] for of_moment in gradients], ignore_index=True)
    return outcome


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, split: str) -> dict[str, float]:
    """The mean loss over a part of the text, in nats a character; the network is then in eval mode."""
    model.eval()
    total, size = 0.0, batches.size(split)
    for given, following in batches.in_turn(split, torch.arange(size).split(128)):
        total += next_character(model(given), given, following).item() * len(given)
    return {"loss": total / size}


def measure(model: nn.Module, batches: Batches, *, epoch: int) -> Tables:
    """Gradient norms at every fork, and the gradient by path length, of the first training sequences; of all paths,
    also where the training's gradient takes short ones alone."""
    given, following = batches.get("train", slice(0, PROBED))
    with record(model) as recording:
        next_character(model(given), given, following).backward(retain_graph=True)
    found = {"gradients": gradient_norms(recording), "paths": path_contributions(recording)}
    model.zero_grad()
    return {name: of_moment.assign(epoch=epoch) for name, of_moment in found.items()}


# The report


def report(tables: Tables, diverged: list[Run], text: Text, settings: Settings, output: Output) -> None:
    """Choose each arm's rate, draw the figures, and print the results."""
    console = show.terminal()
    if show.all_diverged(console, tables, output):
        return
    rates = best_rates(tables["outcomes"], seeds=len(settings.seeds))
    changes = against_residual(tables["outcomes"], rates)
    output.table("scores", score_table(tables["outcomes"], rates, changes, settings.layers))
    for draw, name in ((figures.gradient_norms, "gradients"), (figures.path_lengths, "paths")):
        drawn = at_best(tables[name], rates)
        if len(drawn):
            show.save_figure(output, draw(drawn), drawn, draw.__name__)
    show_losses(console, tables["outcomes"], rates, changes)
    show.diverged(console, diverged)
    show.files(console, output)
    console.print(f"{text.title}, {settings.layers} layers. One text, one budget, each arm's best learning rate.")


def best_rates(outcomes: pd.DataFrame, *, seeds: int) -> dict[str, float]:
    """By arm, the learning rate of the lowest mean validation loss, of those at which no seed diverged; arms without
    such a rate are left out."""
    rows = select(outcomes, split="validation", quantity="loss")
    found = rows.groupby(["arm", "learning_rate"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    found = found[found["count"] == seeds]
    best = found.loc[found.groupby("arm", sort=False)["mean"].idxmin()]
    return dict(zip(best["arm"], best["learning_rate"], strict=True))


def at_best(rows: pd.DataFrame, rates: Mapping[str, float]) -> pd.DataFrame:
    """The rows of each arm at its own rate."""
    return rows[rows["learning_rate"] == rows["arm"].map(rates)].reset_index(drop=True)


def final_losses(outcomes: pd.DataFrame, rates: Mapping[str, float]) -> pd.DataFrame:
    """A row a seed, a column an arm at its own rate: nats a character."""
    rows = select(at_best(outcomes, rates), split="test", quantity="loss")
    return rows.pivot(index="seed", columns="arm", values="value").reindex(columns=list(rates))


def against_residual(outcomes: pd.DataFrame, rates: Mapping[str, float]) -> dict[str, Estimate]:
    """Of each other arm, its test loss minus residual's, paired by seed; nothing without residual."""
    losses = final_losses(outcomes, rates)
    return {
        arm: estimate((losses[arm] - losses["residual"]).to_numpy())
        for arm in rates
        if "residual" in rates and arm != "residual"
    }


def score_table(
    outcomes: pd.DataFrame, rates: Mapping[str, float], changes: Mapping[str, Estimate], layers: int
) -> pd.DataFrame:
    """A long table: arm, learning_rate, depth_total, outcome ("test loss", "test loss - residual"), quantity (mean,
    low, high, n), value."""
    losses, rows = final_losses(outcomes, rates), list[dict[str, object]]()
    for arm, rate in rates.items():
        about = {"arm": arm, "learning_rate": rate, "depth_total": layers}
        rows += estimate(losses[arm].to_numpy()).rows(**about, outcome="test loss")
        if arm in changes:
            rows += changes[arm].rows(**about, outcome="test loss - residual")
    return table(rows)


def show_losses(
    console: Console, outcomes: pd.DataFrame, rates: Mapping[str, float], changes: Mapping[str, Estimate]
) -> None:
    """Arm: its rate, its test loss, and that against residual."""
    losses, names = final_losses(outcomes, rates), list[str](rates)
    rows = {
        ("", arm): {
            "learning rate": f"{rates[arm]:g}",
            "test loss": show.mean_sd(losses[arm]),
            "- residual": show.estimate(changes.get(arm)),
            "n": str(len(losses)),
        }
        for arm in names
    }
    show.table(
        console, rows, title="Nats a character of the test text: mean ± sd over n seeds; difference [95 % t interval]"
    )


if __name__ == "__main__":
    run_script("experiments.transformer")
