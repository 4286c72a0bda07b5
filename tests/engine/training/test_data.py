import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.engine.running.messages import BadInput
from experiments.engine.training import data as module
from experiments.engine.training.data import Batches, Data, Dataset, load, load_splits, shift

CPU = torch.device("cpu")
CIFAR_JPEG = Path(__file__).parents[4] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def make_folder(root: Path, parts: dict[str, dict[str, int]], size: tuple[int, int] = (12, 12)) -> Path:
    """Images of one random colour each, root/PART/CLASS/i.png."""
    colours = np.random.default_rng(0)
    for part, classes in parts.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                colour = tuple(colours.integers(0, 256, 3).tolist())
                Image.new("RGB", size, colour).save(root / part / name / f"{index}.png")
    return root


def read(folder: Path, image_size: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits = load(Data(dataset="folder", data_dir=folder, image_size=image_size)).splits
    return {part: (np.asarray(images), labels) for part, (images, labels) in splits.items()}


def test_digits_are_split_once_and_for_all_by_class() -> None:
    first, second = load(Data()), load(Data())
    assert first.digest == second.digest
    sizes = {name: len(labels) for name, (_, labels) in first.splits.items()}
    assert sizes == {"train": 1077, "validation": 360, "test": 360}
    rows = [image.tobytes() for images, _ in first.splits.values() for image in np.asarray(images)]
    assert len(set(rows)) == 1797  # every digit is distinct, so no image is in two splits
    for _, labels in first.splits.values():
        shares = np.bincount(labels) / len(labels)
        assert abs(shares - 0.1).max() < 0.01


def test_the_default_split_is_the_one_that_results_rest_on() -> None:
    """The digests of version 0.1's splits, computed by its code."""
    assert load(Data()).digest == "f98594d7ff82908e"
    assert load(Data(train_limit=100)).digest == "00f1c06a25740a2c"


def as_rows(dataset: Dataset, split: str) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(dataset.splits[split][0])]


@pytest.mark.parametrize("limit", [None, 100])
def test_another_split_seed_changes_training_and_validation_and_never_test(limit: int | None) -> None:
    splits = [load(Data(split_seed=seed, train_limit=limit)) for seed in (0, 1, 2**32 - 1)]
    assert len({dataset.digest for dataset in splits}) == 3
    for name in ("train", "validation"):
        assert len({frozenset(as_rows(dataset, name)) for dataset in splits}) == 3
        counts = np.array([np.bincount(dataset.splits[name][1]) for dataset in splits])
        assert np.ptp(counts, axis=0).max() <= 1  # stratified: a class may round up or down
    assert len({tuple(as_rows(dataset, "test")) for dataset in splits}) == 1
    for dataset in splits:
        rows = [row for name in dataset.splits for row in as_rows(dataset, name)]
        assert len(set(rows)) == len(rows) == (1797 if limit is None else 100 + 720)


def test_splits_of_several_seeds_are_those_of_each_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Data] = []
    monkeypatch.setitem(
        module.LOADERS, "digits", lambda data, of=module.LOADERS["digits"]: read.append(data) or of(data)
    )
    splits = load_splits(Data(train_limit=100, augment="crop"), (3, 0, 1))
    assert len(read) == 1
    assert list(splits) == [3, 0, 1]
    for seed, dataset in splits.items():
        alone = load(Data(train_limit=100, augment="crop", split_seed=seed))
        assert (alone.digest, alone.title, alone.augment) == (dataset.digest, dataset.title, "crop")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_split_seed_that_no_generator_takes_is_refused_before_anything_is_read(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOADERS", {"digits": None})
    for refuse in (lambda: load(Data(split_seed=seed)), lambda: load_splits(Data(), (0, seed))):
        with pytest.raises(BadInput, match=f"--split-seed {seed}: give a number from 0 to 4294967295"):
            refuse()


def test_a_folder_that_says_what_validates_has_one_split(tmp_path: Path) -> None:
    parts = {"train": {"a": 20, "b": 20}, "val": {"a": 2, "b": 2}, "test": {"a": 1, "b": 2}}
    given = {"dataset": "folder", "data_dir": make_folder(tmp_path / "own", parts)}
    load(Data(**given))
    for refuse in (lambda: load(Data(**given, split_seed=1)), lambda: load_splits(Data(**given), (0, 1))):
        with pytest.raises(BadInput, match="--split-seed 1: own has validation images of its own, in val/; to have"):
            refuse()
    without = {part: parts[part] for part in ("train", "test")}
    drawn = {"dataset": "folder", "data_dir": make_folder(tmp_path / "drawn", without)}
    assert len({dataset.digest for dataset in load_splits(Data(**drawn), range(3)).values()}) == 3


def test_images_are_normalised_by_the_training_images_alone() -> None:
    dataset = load(Data())
    batches = Batches(dataset, torch.device("cpu"))
    images, _ = batches.get("train", slice(None))
    assert images.mean().item() == pytest.approx(0, abs=1e-5)  # float32 over 69,000 pixels
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    np.asarray(dataset.splits["test"][0])[:] = 0
    changed, _ = Batches(dataset, torch.device("cpu")).get("train", slice(None))
    assert torch.equal(images, changed)


def test_imagenets_normalisation_is_torchvisions(tmp_path: Path) -> None:
    """A pixel of ImageNet's mean becomes 0, one a deviation above it 1: published numbers, to 8 bits of a pixel."""
    make_folder(tmp_path, {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
    dataset = load(Data(dataset="folder", data_dir=tmp_path, normalise="imagenet"))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = np.asarray(dataset.splits["train"][0])
    pixels[0], pixels[1] = (np.round(255 * value)[:, None, None] for value in (mean, mean + std))
    images, _ = Batches(
        replace(dataset, splits=dataset.splits | {"train": (pixels, dataset.splits["train"][1])}), CPU
    ).get("train", slice(0, 2))
    assert images[0].abs().max() < 0.5 / 255 / 0.224
    assert (images[1] - 1).abs().max() < 0.5 / 255 / 0.224


def test_shift_moves_each_image_whole_and_zeros_move_in() -> None:
    images = torch.arange(1.0, 1 + 64 * 2 * 16 * 16).view(64, 2, 16, 16)
    moved = shift(images, torch.randint(5, (2, 64, 1), generator=torch.Generator().manual_seed(0)))
    offsets = set()
    for before, after in zip(images, moved, strict=True):
        matches = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                expected = torch.zeros_like(before)
                rows = slice(max(0, -down), 16 - max(0, down)), slice(max(0, down), 16 - max(0, -down))
                columns = slice(max(0, -right), 16 - max(0, right)), slice(max(0, right), 16 - max(0, -right))
                expected[:, rows[0], columns[0]] = before[:, rows[1], columns[1]]
                if torch.equal(expected, after):
                    matches.append((down, right))
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 15  # of 25, drawn 64 times


def test_an_epoch_s_draws_are_those_of_one_batch_after_the_other() -> None:
    """As they were drawn for all published numbers: each batch's moves, then its mirrors; of a share, the whole's."""
    batches = Batches(load(Data(augment="crop-flip")), CPU)
    order = torch.arange(60).split(20)
    for share in (slice(None), slice(10, 20)):
        ours, generator = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        given = batches.draws(order, ours, share=share)
        made = list(batches.epoch(order, torch.Generator().manual_seed(3), share=share))
        for batch, draw, (images, labels) in zip(order, given, made, strict=True):
            moves = torch.randint(3, (2, 20, 1), generator=generator)[:, share]
            mirrors = torch.rand(20, generator=generator)[share] < 0.5
            for wanted, got in zip((batch[share], moves, mirrors), draw.tensors, strict=True):
                assert got is not None
                assert torch.equal(wanted, got)
            wanted = shift(batches.get("train", batch[share])[0], moves)
            assert torch.equal(images, torch.where(mirrors.view(-1, 1, 1, 1), wanted.flip(3), wanted))
            assert torch.equal(labels, batches.get("train", batch[share])[1])
            assert all(map(torch.equal, batches.make(draw), (images, labels)))
        assert torch.equal(ours.get_state(), generator.get_state())


def test_augmentation_depends_on_the_generator_alone() -> None:
    batches = Batches(load(Data(augment="crop-flip")), torch.device("cpu"))
    indices = torch.arange(64)
    ((first, labels),) = batches.epoch([indices], torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    ((second, _),) = batches.epoch([indices], torch.Generator().manual_seed(3))
    assert torch.equal(first, second)
    assert torch.equal(labels, batches.get("train", indices)[1])
    assert not torch.equal(first, batches.get("train", indices)[0])
    assert load(Data()).augment == "none"


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        ({"train": {"a": 20, "b": 20}, "test": {"a": 4, "b": 4}}, [[18, 18], [2, 2], [4, 4]]),  # split off train
        ({"train": {"a": 20, "b": 20}, "val": {"a": 4, "b": 4}}, [[18, 18], [2, 2], [4, 4]]),
        ({"train": {"a": 3, "b": 5}, "val": {"a": 2, "b": 2}, "test": {"a": 1, "b": 2}}, [[3, 5], [2, 2], [1, 2]]),
    ],
)
def test_splits_of_a_folder(tmp_path: Path, parts: dict[str, dict[str, int]], counts: list[list[int]]) -> None:
    splits = read(make_folder(tmp_path, parts))
    assert [np.bincount(splits[name][1]).tolist() for name in ("train", "validation", "test")] == counts
    held_out = "validation" if len(parts) == 3 else "test"
    first = tmp_path / ("test" if "val" not in parts else "val") / "a" / "0.png"
    assert (splits[held_out][0][0, :, 0, 0] == np.asarray(Image.open(first))[0, 0]).all()


def test_train_limit_is_stratified(tmp_path: Path) -> None:
    splits = load(Data(train_limit=100)).splits
    assert np.bincount(splits["train"][1]).tolist() == [10] * 10
    with pytest.raises(BadInput, match=r"--train-limit 5000: give 10 \(one a class\) to 1067"):
        load(Data(train_limit=5000))


def test_a_class_too_small_to_be_drawn_from_is_refused(tmp_path: Path) -> None:
    many, few = {"a": 4, "b": 4}, {"a": 4, "b": 1}
    folder = make_folder(tmp_path, {"train": few, "val": many, "test": many})
    with pytest.raises(BadInput, match="cannot draw 3 of 5 images class by class: The least populated class"):
        load(Data("folder", folder, train_limit=3))


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
    Image.new("RGB", (9, 20)).save(tmp_path / "test" / "b" / "odd.png")
    with pytest.raises(BadInput, match=r"odd.png: is 9 x 20 pixels, others 12 x 12; give --image-size"):
        read(tmp_path)
    assert read(tmp_path, image_size=8)["test"][0].shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "found no train/ beside test/ or val/"),
        ({"train": {"a": 2, "b": 2}}, "found no train/ beside test/ or val/"),
        ({"train": {}, "test": {}}, "train/ has 0 classes"),
        ({"train": {"a": 2, "b": 2}, "test": {"a": 1, "c": 1}}, "differ in the classes b, c"),
        ({"train": {"a": 1, "b": 2}, "test": {"a": 1, "b": 1}}, "one image only"),
    ],
)
def test_folders_that_cannot_be_learned_from(tmp_path: Path, parts: dict[str, dict[str, int]], message: str) -> None:
    for part in parts:
        (tmp_path / part).mkdir()
    make_folder(tmp_path, parts)
    with pytest.raises(BadInput, match=message):
        read(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}})
    (tmp_path / "train" / "b" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(BadInput, match=r"broken.png: cannot be read as an image"):
        read(tmp_path)


def test_torchvision_sets_are_never_fetched_unasked(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100", "fashion-mnist"):
        with pytest.raises(BadInput, match=f"--dataset {name}: not found in .*add --download"):
            load(Data(dataset=name, data_dir=tmp_path))
        with pytest.raises(BadInput, match="needs --data-dir"):
            load(Data(dataset=name))


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason=f"the CIFAR-10 JPEG archive is not at {CIFAR_JPEG}")
@pytest.mark.slow
def test_a_slice_of_cifar_10_as_a_folder(tmp_path: Path) -> None:
    unpack_cifar(tmp_path, per_class=12)
    splits = read(tmp_path)
    assert splits["train"][0].shape == (108, 3, 32, 32)
    assert [len(splits[name][1]) for name in ("validation", "test")] == [12, 120]
    assert 80 < splits["train"][0].mean() < 160  # natural images, not noise or blanks


def unpack_cifar(folder: Path, per_class: int) -> None:
    """The first images of each class of both parts. The archive is read as a stream: it is one xz block."""
    taken: dict[str, int] = {}
    with tarfile.open(CIFAR_JPEG, "r|xz") as archive:
        for member in archive:
            path = Path(member.name)
            if not member.isfile() or path.suffix != ".jpg":
                continue
            place = "/".join(path.parts[-3:-1])
            taken[place] = taken.get(place, 0) + 1
            content = archive.extractfile(member)
            if taken[place] <= per_class and content is not None:
                (folder / place).mkdir(parents=True, exist_ok=True)
                (folder / place / path.name).write_bytes(content.read())
            if len(taken) == 20 and min(taken.values()) >= per_class:
                break
