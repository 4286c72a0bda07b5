"""A model's junctions and profile, from the command line.

``residual-probes torchvision:resnet18``, or ``python -m probes``; with ``--weights A.pt B.pt`` the profile over a
training's checkpoints; with ``--out DIR`` also tables, and where the extra ``figures`` is installed figures and a page.
Nothing is downloaded: weights are random unless ``--weights`` gives state dicts.
"""

import json
import platform
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
from torch import Tensor, nn

from . import __version__
from .files import to_csv
from .profile import Profile, describe, describe_checkpoints, measure, one_table, summarise
from .sources import FORMS, load_model, load_weights, make_inputs

CHECKPOINTS, FIGURE, PAGE, MANIFEST = "checkpoints", "profiles", "report.html", "written.json"
MOST_ROWS, CUT = 400, "The first 400 of {} rows; the file has all of them."  # of a table on the page
NO_FIGURES = "No figures and no page: {} is not installed; pip install 'residual-probes[figures]'"


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Find, measure, print, write; a mistake of the user's ends with one line and the exit code 2."""
    parser = parser_of()
    given = parser.parse_args(arguments)
    given.command = shlex.join([parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
    try:
        _check(given)
        profiles = _profiles(given)
        print(f"{_title(given)}\n\n{_text(profiles)}")
        for note in dict.fromkeys(note for profile in profiles.values() for note in profile.notes):
            print(note)
        if given.out is not None:
            _write(profiles, given)
    except ValueError as error:
        parser.error(str(error))


def parser_of() -> ArgumentParser:
    """The arguments of the command."""
    parser = _Parser(
        prog="residual-probes",
        description="Where are a model's residual junctions, and how do gradient and residuals spread over its depth? "
        "One forward and backward on random numbers or images; the loss is the mean square of the model's first "
        "output, or cross-entropy where --images come with labels. Nothing is downloaded.",
        epilog="Redraw a figure of --out for a paper: python -m probes.figures --help",
    )
    parser.add_argument("model", metavar="MODEL", help=", ".join(FORMS))
    parser.add_argument(
        "--weights", nargs="+", type=Path, default=[], metavar="FILE",
        help="state dicts to load (no code in them is run); of several, in this order, the profile over a training",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables, figures and a page into this folder")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image file as input")
    parser.add_argument(
        "--images", type=Path, metavar="FILE",
        help="an .npz file: its first images x, uint8 (N, 3, H, W), are the input, its labels y if any the aim",
    )  # fmt: skip
    parser.add_argument(
        "--shape", nargs="+", type=int, metavar="N", help="random inputs of this shape, without the batch: 1 28 28"
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="how many inputs (%(default)s)")
    parser.add_argument(
        "--image-size", type=int, default=224, metavar="N",
        help="side of the images in pixels, where the model does not say (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--length", type=int, default=32, metavar="N", help="tokens in a sequence (%(default)s)")
    parser.add_argument("--train", action="store_true", help="in train mode, with batch statistics and dropout")
    parser.add_argument(
        "--paths", type=int, default=30, metavar="N",
        help="decompose the gradient by path length in networks of up to N junctions (%(default)s); 0: never",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights and inputs (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    return parser


def _check(given: Namespace) -> None:
    """Raise ValueError for settings that cannot be."""
    least = {"batch_size": 1, "image_size": 1, "length": 1, "paths": 0, "seed": 0}
    for name, number in least.items():
        if getattr(given, name) < number:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(given, name)}: give at least {number}")
    if given.shape is not None and min(given.shape) < 1:
        raise ValueError(f"--shape {' '.join(map(str, given.shape))}: give sizes from 1")
    if len(set(given.weights)) < len(given.weights):
        raise ValueError(f"--weights {' '.join(map(str, given.weights))}: give each file once")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        raise ValueError(f"--out {given.out}: is a file; choose another folder")
    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {given.device}: {str(error).splitlines()[0]}") from None


def _profiles(given: Namespace) -> dict[str, Profile]:
    """The profile of each checkpoint by its name, of weights without a training under ""."""
    torch.manual_seed(given.seed)
    model = load_model(given.model)
    inputs, labels = make_inputs(
        model,
        batch_size=given.batch_size,
        size=given.image_size,
        length=given.length,
        shape=given.shape,
        image=given.image,
        images=given.images,
    )
    model.train(given.train)
    profiles = {}
    for name, file in zip(short_names(given.weights) or [""], given.weights or [None], strict=True):
        if file is not None:
            load_weights(model, file)
        torch.manual_seed(given.seed)  # the same dropout for all
        profiles["" if len(given.weights) < 2 else name] = _measure(model, inputs, labels, given)
    return profiles


def _measure(model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor | None, given: Namespace) -> Profile:
    try:
        inputs = {name: x.to(given.device) for name, x in inputs.items()}
        return measure(model.to(given.device), inputs, labels, most_junctions=given.paths)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{given.model}: {' '.join(str(error).split())}") from None


def short_names(files: Sequence[Path]) -> list[str]:
    """What tells files apart: their paths without the folders, and without the names, that all have in common."""
    parts = [file.parts for file in files]
    while len(parts) > 1 and len({path[:1] for path in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [path[1:] for path in parts]
    while len(parts) > 1 and len({path[-1:] for path in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]


def _text(profiles: Mapping[str, Profile]) -> str:
    return describe(profiles[""]) if "" in profiles else describe_checkpoints(profiles)


def _title(given: Namespace) -> str:
    weights = {0: "random weights", 1: f"weights of {given.weights[0]}" if given.weights else ""}
    inputs = str(given.image or given.images or "random inputs")
    return (
        f"{given.model}, {'train' if given.train else 'eval'} mode, "
        f"{weights.get(len(given.weights), f'{len(given.weights)} checkpoints')}, {given.batch_size} x {inputs}"
    )


def _write(profiles: Mapping[str, Profile], given: Namespace) -> None:
    """Write tables, then figures and a page where there are figures; print the files.

    What an earlier call wrote, of another model perhaps, is deleted first, and nothing else.
    """
    first = next(iter(profiles.values()))
    tables = {"adds": first.adds, **(first.tables if "" in profiles else {CHECKPOINTS: one_table(profiles)})}
    name, missing = FIGURE if "" in profiles else CHECKPOINTS, ""
    try:
        figures = _figures()
    except ModuleNotFoundError as error:
        figures, missing = None, NO_FIGURES.format(error.name)
    names = [f"{table}.csv" for table in tables]
    names += [*(f"figures/{name}.{suffix}" for suffix in ("pdf", "png", "csv")), PAGE] if figures else []
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        for earlier in _listed(given.out):
            earlier.unlink(missing_ok=True)
        (given.out / MANIFEST).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
        for table, rows in tables.items():
            (given.out / f"{table}.csv").write_text(to_csv(rows), encoding="utf-8")
        if figures:
            _draw(figures, name, profiles, tables, given)
    except OSError as error:
        raise ValueError(f"--out {given.out}: cannot be written ({error.strerror}); choose another folder") from None
    print(f"\nWritten to {given.out}:", *(f"  {file}" for file in names), sep="\n")
    if missing:
        print(missing)


def _listed(folder: Path) -> list[Path]:
    """The files in a folder that an earlier call wrote; none where its list is missing or no such list."""
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [folder / name for name in names]
    except (FileNotFoundError, ValueError, TypeError):
        return []
    return [file for file in files if file.resolve().is_relative_to(folder.resolve()) and file.is_file()]


def _figures() -> Any:
    """The figures: in the wheel a part of this package, in the checkout the folder beside it.

    ModuleNotFoundError where they, or a library that they need, are not installed.
    """
    here = Path(__file__).parent
    if (here / "figures").is_dir() or not (here.parent / "figures" / "parts" / "sheet.py").is_file():
        return import_module(f"{__package__}.figures")
    return import_module("figures")


def _draw(
    figures: Any, name: str, profiles: Mapping[str, Profile], tables: Mapping[str, pd.DataFrame], given: Namespace
) -> None:
    """Draw the figure of that name, and write the page."""
    table = tables[CHECKPOINTS] if name == CHECKPOINTS else profiles[""].drawn
    axes = getattr(figures, name)(table, title=_title(given))
    page = import_module(f"{figures.__name__}.page")
    picture = page.picture(axes, file=f"figures/{name}.csv")
    figures.save(axes, table, given.out / "figures", name)
    sections = [page.Section("Profile", [picture, page.Code(_text(profiles))])]
    for name, table in tables.items():
        caption = CUT.format(len(table)) if len(table) > MOST_ROWS else ""
        shown = page.Table(table.head(MOST_ROWS), caption=caption, file=f"{name}.csv")
        sections.append(page.Section(name.replace("_", " "), [shown], folded=True))
    about = [page.Code(given.command), page.Facts(_facts(given))]
    sections.append(page.Section("How to repeat it", about, folded=True))
    question = "Where are its residual junctions, and how do gradient and residuals spread over its depth?"
    answer = summarise([*profiles.values()][-1])
    page.Page(given.model, question, answer, sections).write(given.out / PAGE)


def _facts(given: Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    labelled = " (cross-entropy where the images have labels)" if given.images else ""
    return {
        "model": given.model,
        "mode": "train" if given.train else "eval",
        "weights": ", ".join(map(str, given.weights)) or "random",
        "inputs": f"{given.batch_size} x {given.image or given.images or 'random'}",
        "loss": f"mean square of the first output{labelled}",
        "seed": str(given.seed),
        "device": given.device,
        "versions": f"residual-probes {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
