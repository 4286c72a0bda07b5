"""Where are a model's residual junctions, and how do gradient and residuals spread over its depth?

Finds the junctions of any torchvision, timm, Hugging Face or home-made model, runs the probes once on random input,
an image or a file of images, and draws the profiles. The loss is the mean square of the model's first output, or
cross-entropy where --images come with labels. With --samples, single paths are walked too (Veit et al. 2016), and the
lengths that hold most of their gradient are printed. Nothing is downloaded: weights are random unless --weights gives a
state dict.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_at_least, first_line
from experiments.engine.running.output import Output
from experiments.engine.running.workers import check_device
from experiments.questions.any_model import first_output, load_images, load_model, load_weights, make_inputs
from experiments.questions.path_spectra import VEIT, format_band, spectra
from probes import (
    contributions,
    find_junctions,
    gradient_norms,
    iterative_inference,
    path_contributions,
    record,
    residual_magnitudes,
    stream_statistics,
)

EXPERIMENT = "probe_model"


@dataclass(frozen=True)
class Settings:
    """Every setting of the script."""

    model: str = "torchvision:resnet18"
    """torchvision:NAME, timm:NAME, hf:TYPE (such as hf:gpt2, from its default config), cifar_resnet:DEPTH or
    FILE.py:FUNCTION."""
    weights: Path | None = None
    """A state dict to load (read without running code)."""
    image: Path | None = None
    """An image file as input, instead of random numbers."""
    images: Path | None = None
    """An .npz file: its first --batch-size images x, uint8 (N, 3, H, W), are the input, its labels y if any the aim."""
    batch_size: int = 4
    """How many inputs."""
    image_size: int = 224
    """Side of the images, in pixels, where the model does not say."""
    length: int = 32
    """Tokens in a sequence, for models that take tokens."""
    train: bool = False
    """Run in train mode (batch statistics, dropout) instead of eval mode."""
    paths: int = 30
    """Decompose the gradient by path length in networks of up to this many junctions; 0: never."""
    samples: int = 0
    """Walk this many random single paths of each length as well."""
    seed: int = 0
    """Random seed of weights and input."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    out: Path = Path("results")
    """The folder of all results."""
    quick: bool = False
    """A first look: 2 inputs, images of 64 pixels."""


QUICK = Settings(batch_size=2, image_size=64)


def main(settings: Settings) -> None:
    """Find, measure, draw."""
    check_at_least("--batch-size", settings.batch_size, 1)
    check_at_least("--image-size", settings.image_size, 1)
    if settings.samples < 0 or settings.samples == 1:
        raise BadInput(f"--samples {settings.samples}: give at least 2, or 0 for none")
    device = check_device(settings.device)
    torch.manual_seed(settings.seed)
    model = load_model(settings.model)
    if settings.weights:
        load_weights(model, settings.weights)
    model.train(settings.train).to(device)
    inputs, labels = choose_inputs(model, settings)
    positional = [x.to(device) for name, x in inputs.items() if not name]
    named = {name: x.to(device) for name, x in inputs.items() if name}
    try:
        adds = find_junctions(model, *positional, explain=True, **named)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BadInput(f"--model {settings.model}: {first_line(error)}") from None
    tables, notes = measure(model, positional, named, labels, adds, settings)
    report(tables, notes, adds, settings)


def choose_inputs(model: nn.Module, settings: Settings) -> tuple[dict[str, Any], Tensor | None]:
    """Inputs by name, and labels if there are any."""
    if settings.images is None:
        size, length = settings.image_size, settings.length
        return make_inputs(model, batch_size=settings.batch_size, size=size, length=length, image=settings.image), None
    if settings.image is not None:
        raise BadInput(f"--image {settings.image} --images {settings.images}: give one of the two")
    images, labels = load_images(settings.images, settings.batch_size)
    return {"": images}, labels


def measure(
    model: nn.Module,
    positional: list[Any],
    named: dict[str, Any],
    labels: Tensor | None,
    adds: pd.DataFrame,
    settings: Settings,
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The probes' tables by name, and what could not be measured."""
    junctions = int((adds["verdict"] != "none").sum())
    if not junctions:
        raise BadInput(
            f"--model {settings.model}: none of its {len(adds)} adds is a residual junction; for such a network name "
            "the modules that count as depth in Python: record(model, blocks=[...])"
        )
    paths = junctions <= settings.paths
    with record(model, keep=True) as recording:
        output = first_output(model(*positional, **named)).float()
        loss = output.square().mean() if labels is None else F.cross_entropy(output, labels.to(output.device))
        loss.backward(retain_graph=paths)
    probes = (gradient_norms, residual_magnitudes, contributions, stream_statistics, iterative_inference)
    tables = {probe.__name__: probe(recording) for probe in probes}
    notes = [] if paths else [f"path lengths: not taken of {junctions} junctions; raise --paths to have them"]
    if paths:
        try:
            if settings.samples:
                found = spectra(recording, samples=settings.samples, seed=settings.seed)
                tables |= {"sampled_paths": found["sampled"], "path_bands": found["bands"]}
                tables["path_contributions"] = found["paths"]
            else:
                tables["path_contributions"] = path_contributions(recording)
        except ValueError as error:
            notes.append(f"path lengths: {error}")
    return tables, notes


def report(tables: dict[str, pd.DataFrame], notes: list[str], adds: pd.DataFrame, settings: Settings) -> None:
    """Write and draw what was measured, and print the junctions."""
    folder = settings.out / EXPERIMENT / settings.model.replace("/", "_").replace(":", "-")
    output = Output(folder, settings=settings)
    output.clear()
    for name, table in {"adds": adds, **tables}.items():
        output.table(name, table)
    sizes = tables["residual_magnitudes"]  # its norms of the addends have the names of the gradients' parts
    shown = [tables["gradient_norms"], sizes[sizes["quantity"].isin(["ratio", "cosine"])]]
    shown += [tables["path_contributions"]] if "path_contributions" in tables else []
    together = pd.concat(shown, ignore_index=True)
    mode = "train" if settings.train else "eval"
    title = f"{settings.model}, {mode} mode, {'given' if settings.weights else 'random'} weights"
    show.save_figure(output, figures.profiles(together, title=title), together, "profiles")
    console = show.terminal()
    found = adds[adds["verdict"] != "none"]
    rows = {
        ("", str(row["block"])): {"depth": f"{row['depth']:.0f}", "shortcut": row["verdict"]}
        for row in found.to_dict("records")
    }
    show.table(console, rows, title="Junctions")
    kinds = found["verdict"].value_counts()
    counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    others = f"{len(adds) - len(found)} other adds (adds.csv says why)"
    junctions = f"{len(found)} junction{'s' * (len(found) != 1)}: {counts}; {others}."
    if "path_bands" in tables:
        notes = [*notes, describe_bands(tables["path_bands"], len(found), settings.samples)]
    show.files(console, output)
    answer = f"{junctions} {describe_profile(tables)}"
    show.end(console, output, answer=answer, remark="\n".join(notes))


def describe_profile(tables: dict[str, pd.DataFrame]) -> str:
    """A sentence: how the gradient changes on its way back, and how large the residuals are."""
    totals = tables["gradient_norms"].query("quantity == 'total'").sort_values("depth")["value"]
    ratios = tables["residual_magnitudes"].query("quantity == 'ratio'")["value"]
    return (
        f"From the last junction back to the first, the gradient's norm goes from {totals.iloc[-1]:.3g} to "
        f"{totals.iloc[0]:.3g}; a residual has {ratios.median():.2g} times the norm of what its shortcut carries "
        f"(median; {ratios.min():.2g} to {ratios.max():.2g})."
    )


def describe_bands(bands: pd.DataFrame, junctions: int, samples: int) -> str:
    """The bands of one network's spectra, and the fall of its paths' norms."""
    wide = bands.pivot_table(index=lambda _: 0, columns="quantity", values="value", dropna=False)
    slope, fit = wide["slope"].item(), wide["fit"].item()
    falls = f"; log10 of the path norm changes by {slope:+.3f} a branch (R² {fit:.2f})" if slope == slope else ""
    return (
        f"path lengths 0 to {junctions}: 95 % of the sampled mass lies at {format_band(wide, 'mass')} branches "
        f"({samples} paths a length), of the exact sums' norms at {format_band(wide, 'norm')}{falls}. {VEIT}"
    )


if __name__ == "__main__":
    run_script("experiments.probe_model")
