"""Images that stay in their files: the same batches as from memory, read ahead by worker distributed."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from experiments.engine.running.grid import run_grid
from experiments.engine.running.messages import BadInput
from experiments.engine.running.output import Output
from experiments.engine.running.workers import Execution
from experiments.engine.training.data import Batches, Data, Dataset, load
from experiments.engine.training.image_files import ImageFiles
from experiments.engine.training.loop import evaluate, recompute_bn_statistics, train
from experiments.engine.training.optimisation import Training
from experiments.engine.training.settings import NetworkSettings
from experiments.engine.training.train_run import train_run
from models import cifar_resnet
from tests.engine.training.test_data import make_folder

SPLITS = ("train", "validation", "test")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # as of 3.12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """48 photographs of noise, of many shapes, in two classes."""
    folder, draws = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for part, count in (("train", 18), ("test", 6)):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                height, width = draws.integers(9, 24, 2)
                pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.jpg")
    return Data("folder", folder, image_size=8, augment="crop-flip", normalise="imagenet")


@pytest.fixture(scope="module")
def both(data: Data) -> tuple[Dataset, Dataset]:
    """From memory, and from files by two worker distributed."""
    return load(data), load(replace(data, data_loader_workers=2))


def an_epoch(dataset: Dataset, share: slice = slice(None)) -> list[tuple[Tensor, Tensor]]:
    batches, generator = Batches(dataset, torch.device("cpu")), torch.Generator().manual_seed(3)
    order = torch.randperm(batches.size("train"), generator=generator).split(8)[:4]
    return list(batches.epoch(order, generator, share=share))


def test_files_give_the_batches_that_memory_gives(both: tuple[Dataset, Dataset]) -> None:
    memory, files = both
    assert isinstance(files.splits["train"][0], ImageFiles)
    assert files.shape == memory.shape == (3, 8, 8)
    for split in SPLITS:
        for of_memory, of_files in zip(memory.splits[split], files.splits[split], strict=True):
            assert np.array_equal(np.asarray(of_memory), np.asarray(of_files))
        for part in (slice(2, 5), torch.tensor([2, 0])):
            wanted, got = (Batches(dataset, torch.device("cpu")).get(split, part) for dataset in both)
            assert all(map(torch.equal, wanted, got))
    epochs = [an_epoch(dataset) for dataset in both]
    assert len(epochs[0]) == len(epochs[1]) == 4
    for wanted, got in zip(*epochs, strict=True):
        assert all(map(torch.equal, wanted, got))


def test_a_share_of_a_batch_is_moved_as_it_is_in_the_whole(both: tuple[Dataset, Dataset]) -> None:
    for dataset in both:
        whole, halves = an_epoch(dataset), [an_epoch(dataset, share) for share in (slice(0, 4), slice(4, 8))]
        for batch, first, second in zip(whole, *halves, strict=True):
            assert all(torch.equal(a, torch.cat([b, c])) for a, b, c in zip(batch, first, second, strict=True))


def test_training_and_evaluating_from_files_is_that_from_memory(both: tuple[Dataset, Dataset]) -> None:
    found = []
    for dataset in both:
        torch.manual_seed(0)
        model, batches = cifar_resnet(8, width=2, num_classes=2), Batches(dataset, torch.device("cpu"))
        losses = torch.cat(list(train(model, batches, Training(epochs=2, batch_size=8), seed=0)))
        recompute_bn_statistics(model, batches)
        found.append((losses.tolist(), evaluate(model, batches, "test")))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_grids_workers_can_have_workers_that_read(both: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    settings = NetworkSettings(width=2, seeds=(0, 1), training=Training(epochs=1, batch_size=8))
    outcomes = []
    for dataset in both:
        runs, task = settings.runs("x", dataset, arms=("plain",), depths=(8,)), partial(train_run, dataset=dataset)
        tables, _ = run_grid(runs, task, Output(tmp_path / dataset.digest), execution=Execution(2))
        outcomes.append(tables["outcomes"])
    pd.testing.assert_frame_equal(*outcomes)


def test_the_fingerprint_tells_files_sizes_and_labels_apart(data: Data, tmp_path: Path) -> None:
    data = replace(data, data_loader_workers=1)
    first = load(data).digest
    assert first == load(replace(data, data_loader_workers=2)).digest  # who reads them is no matter
    assert first != load(replace(data, image_size=9)).digest != load(replace(data, train_limit=10)).digest != first
    (tmp_path / "moved").symlink_to(data.data_dir or "")
    assert first == load(replace(data, data_dir=tmp_path / "moved")).digest


def test_an_unreadable_file_is_named_when_its_batch_is_due(data: Data, tmp_path: Path) -> None:
    classes = {"a": 6, "b": 6}
    make_folder(tmp_path, {"train": classes, "test": classes}, size=(8, 8))
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no image")
    dataset = load(replace(data, data_dir=tmp_path, data_loader_workers=1))
    with pytest.raises(BadInput, match=r"^\S+3.png: cannot be read as an image \(cannot identify[^\n]+$"):
        an_epoch(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_loader_workers": -1}, "--data-loader-workers -1: give at least 1"),
        ({"data_loader_workers": 2, "image_size": None}, "--data-loader-workers 2 needs --image-size"),
        ({"data_loader_workers": 2, "normalise": "training"}, "--data-loader-workers 2 needs --normalise imagenet"),
    ],
)
def test_settings_that_files_do_not_allow(data: Data, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(replace(data, **changes))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="--data-loader-workers means nothing to --dataset digits"):
        load(Data(data_loader_workers=2))
