"""Where are a model's residual junctions, and how do gradient and residuals spread over its depth?

Finds the junctions of any torchvision, timm, Hugging Face or home-made model, runs the probes once on random input,
an image or a file of images, and draws the profiles. The loss is the mean square of the model's first output, or
cross-entropy where --images come with labels. With --samples, single paths are walked too (Veit et al. 2016), and the
lengths that hold most of their gradient are printed. Nothing is downloaded: weights are random unless --weights gives a
state dict.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.text import Text

import figures
from experiments.engine.reporting import show
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import BadInput, check_at_least
from experiments.engine.running.output import Output
from experiments.engine.running.workers import check_device
from experiments.questions.any_model import as_bad_input, load_model, load_weights
from experiments.questions.path_spectra import VEIT, format_band, spectra
from figures.page import Table
from probes import Recording
from probes.profile import Profile, describe, measure, spectrum, summarise
from probes.sources import make_inputs

EXPERIMENT = "probe_model"


@dataclass(frozen=True)
class Settings:
    """Every setting of the script."""

    model: str = "torchvision:resnet18"
    """torchvision:NAME, timm:NAME, hf:TYPE (such as hf:gpt2, from its default config), cifar_resnet:DEPTH or
    FILE.py:FUNCTION."""
    weights: Path | None = None
    """A state dict to load (read without running code)."""
    shape: tuple[int, ...] | None = None
    """Random inputs of this shape, without the batch: 1 28 28."""
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
    with as_bad_input():
        inputs, labels = make_inputs(
            model,
            batch_size=settings.batch_size,
            size=settings.image_size,
            length=settings.length,
            shape=settings.shape,
            image=settings.image,
            images=settings.images,
        )
    inputs = {name: x.to(device) for name, x in inputs.items()}
    with as_bad_input(f"--model {settings.model}: "):
        found = measure(model, inputs, labels, most_junctions=settings.paths, of_paths=paths_of(settings))
    report(found, settings)


def paths_of(settings: Settings) -> Callable[[Recording], dict[str, pd.DataFrame]]:
    """What is measured of a recording's path lengths."""
    if not settings.samples:
        return spectrum

    def both(recording: Recording) -> dict[str, pd.DataFrame]:
        found = spectra(recording, samples=settings.samples, seed=settings.seed)
        return {"sampled_paths": found["sampled"], "path_bands": found["bands"], "path_contributions": found["paths"]}

    return both


def report(found: Profile, settings: Settings) -> None:
    """Write and draw what was measured, and print it."""
    folder = settings.out / EXPERIMENT / settings.model.replace("/", "_").replace(":", "-")
    output = Output(folder, settings=settings)
    output.clear()
    for name, table in {"adds": found.adds, **found.tables}.items():
        output.table(name, table)
    mode = "train" if settings.train else "eval"
    title = f"{settings.model}, {mode} mode, {'given' if settings.weights else 'random'} weights"
    show.save_figure(output, figures.profiles(found.drawn, title=title), found.drawn, "profiles")
    console = show.terminal()
    console.print(Text(describe(found)), soft_wrap=True)
    console.shown.keep(Table(found.junctions, title="Junctions"))
    notes = [*found.notes]
    if "path_bands" in found.tables:
        notes.append(describe_bands(found.tables["path_bands"], len(found.junctions), settings.samples))
    show.files(console, output)
    show.end(console, output, answer=summarise(found), remark="\n".join(notes))


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
