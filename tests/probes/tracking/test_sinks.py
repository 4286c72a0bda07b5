"""Where a training's tables go: what is read back is what was measured, and files stay whole."""

import json
import math
import os
import struct
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from probes import gradient_norms, path_contributions, track
from probes.files import from_csv
from probes.tracking import sinks as places
from probes.tracking.sinks import CsvFile
from tests.support.networks import FLOAT64, chain, squares

Kept = dict[int, pd.DataFrame]


class Run:
    """What Weights & Biases and trackio have in common."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((step, data))


class Writer:
    """A TensorBoard writer without TensorBoard."""

    def __init__(self) -> None:
        self.added: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.added.append((tag, scalar_value, global_step))


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, dtype=FLOAT64, generator=generator) for _ in range(count)]


def train(model: nn.Module, xs: Sequence[Tensor], to: Any, **options: Any) -> None:
    opt = SGD(model.parameters(), lr=0.05)
    with track(model, **{"every": 2, "to": to, **options}):
        for x in xs:
            opt.zero_grad()
            squares(model(x)).backward(retain_graph=True)
            opt.step()


def numbers(table: pd.DataFrame) -> dict[tuple[int, str], float]:
    """Every value by step and name, written out here once more."""
    found = {}
    for row in table.itertuples(index=False):
        place = row.block if isinstance(row.block, str) else row.path_length
        found[row.step, f"{row.probe}/{row.quantity}/{place}"] = row.value
    assert len(found) == len(table)
    return found


def test_every_place_holds_the_same_numbers(tmp_path: Path) -> None:
    kept, run, writer = Kept(), Run(), Writer()
    to = [tmp_path / "new" / "a.csv", str(tmp_path / "b.csv"), kept.__setitem__, run, writer]
    train(chain(3), batches(5), to, measure=(gradient_norms, path_contributions))
    wanted = pd.concat(kept.values(), ignore_index=True)
    assert wanted["step"].unique().tolist() == [0, 2, 4]
    assert (tmp_path / "new" / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    exact = pd.read_csv(tmp_path / "b.csv", dtype={"block": str}, converters={"value": float})
    pd.testing.assert_frame_equal(exact, wanted, check_exact=True, check_dtype=False)
    by_name = numbers(wanted)
    assert len(by_name) == 3 * (3 * 4 + 4 * 2)
    assert {(step, name): value for step, data in run.logged for name, value in data.items()} == by_name
    assert [step for step, _ in run.logged] == [0, 2, 4]
    assert {(step, name): value for name, value, step in writer.added} == by_name


def test_tensorboard_s_event_file(tmp_path: Path) -> None:
    """TensorBoard keeps float32."""
    reading = "tensorboard.backend.event_processing.event_accumulator"
    reader: Any = pytest.importorskip(reading, exc_type=ImportError)
    from torch.utils.tensorboard import SummaryWriter

    kept = Kept()
    with SummaryWriter(str(tmp_path)) as writer:
        train(chain(2), batches(3), [writer, kept.__setitem__])
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    found = {(e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert found == pytest.approx(numbers(pd.concat(kept.values())), rel=1e-6)


@pytest.fixture
def their_warnings() -> Iterator[None]:
    """Those of wandb and trackio are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def records_of(file: Path) -> Iterator[bytes]:
    """The records of an offline run's file, which is a LevelDB log: blocks of 32 KiB; each record, or fragment of one,
    behind its checksum, its length and its kind (1 whole, 2 first, 3 middle, 4 last)."""
    data, place, fragments = file.read_bytes(), 7, b""
    while place + 7 < len(data):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        fragments += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):
            return
        if kind in (1, 4):
            yield fragments
            fragments = b""


@pytest.mark.usefixtures("their_warnings")
def test_an_offline_run_of_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CACHE", "DATA"):  # else in the home folder
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    wandb: Any = pytest.importorskip("wandb", exc_type=ImportError)
    messages: Any = pytest.importorskip("wandb.proto.wandb_internal_pb2")

    kept = Kept()
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(mode="offline", project="probes", dir=str(tmp_path), settings=settings)
    try:
        train(chain(2), batches(3), [run, kept.__setitem__])
    finally:
        run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []
    for _ in range(600):  # another process writes the file, also after `finish` has returned
        records = [messages.Record.FromString(data) for data in records_of(file)]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.1)
    found: dict[tuple[int, str], float] = {}
    for record in records:
        logged = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        found |= {(logged["_step"], name): value for name, value in logged.items() if not name.startswith("_")}
    assert found == numbers(pd.concat(kept.values()))


@pytest.mark.usefixtures("their_warnings")
def test_a_run_of_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads where its files go when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio: Any = pytest.importorskip("trackio", exc_type=ImportError)
    storage: Any = pytest.importorskip("trackio.sqlite_storage")

    kept = Kept()
    run = trackio.init(project="probes", name="run", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        train(chain(2), batches(3), [run, kept.__setitem__])
    finally:
        run.finish()
    wanted, found = numbers(pd.concat(kept.values())), dict[tuple[int, str], float]()
    for logged in storage.SQLiteStorage.get_logs("probes", "run"):
        found |= {(logged["step"], name): value for name, value in logged.items() if (logged["step"], name) in wanted}
    assert found == wanted


def test_a_place_may_change_its_table(tmp_path: Path) -> None:
    def spoil(step: int, table: pd.DataFrame) -> None:
        table["value"] = math.nan

    train(chain(1), batches(1), [spoil, tmp_path / "a.csv"])
    assert from_csv((tmp_path / "a.csv").read_text())["value"].notna().all()


def needs_pyarrow(suffix: str) -> Any:
    return pytest.param(suffix, marks=pytest.mark.skipif(not pyarrow_is_there(), reason="needs pyarrow"))


def pyarrow_is_there() -> bool:
    return places.importlib.util.find_spec("pyarrow") is not None


both_files = pytest.mark.parametrize("suffix", [".csv", needs_pyarrow(".parquet")])


def read(path: Path) -> pd.DataFrame:
    return from_csv(path.read_text()) if path.suffix == ".csv" else pd.read_parquet(path)


@both_files
def test_a_resumed_training_continues_its_file_and_writes_no_step_twice(suffix: str, tmp_path: Path) -> None:
    path, xs, model = tmp_path / f"norms{suffix}", batches(9), chain(2)
    kept = Kept()
    train(chain_like(model), xs, kept.__setitem__)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    train(model, xs[:3], path)
    at_three = {name: x.clone() for name, x in model.state_dict().items()}
    train(model, xs[3:7], path, start=3)  # steps 4 and 6
    model.load_state_dict(at_three)
    train(model, xs[3:], path, start=3)  # again from the checkpoint: 4 and 6 are there, 8 is new
    found = read(path)
    assert found["step"].unique().tolist() == [0, 2, 4, 6, 8]
    pd.testing.assert_frame_equal(found, pd.concat(kept.values(), ignore_index=True), check_exact=True)
    assert not torch.equal(state["0.branch.0.weight"], at_three["0.branch.0.weight"])


def chain_like(model: nn.Sequential) -> nn.Sequential:
    twin = chain(len(model))
    twin.load_state_dict(model.state_dict())
    return twin


@both_files
def test_a_file_that_is_there_is_not_overwritten(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"norms{suffix}"
    train(chain(1), batches(1), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"norms{suffix}' exists, and this training begins at step 0: .*start=STEP"):
        train(chain(1), batches(1), path)
    with pytest.raises(ValueError, match=r"has the columns \['step'.* continue a file with the measurements"):
        train(chain(1), batches(1), path, start=2, measure=path_contributions)
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,value\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv' has no column 'step', and cannot be continued"):
        train(chain(1), batches(1), tmp_path / "other.csv", start=2)
    assert (tmp_path / "other.csv").read_text() == "a,value\n1,2\n"


@both_files
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_was_written_stays_whole(suffix: str, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / f"norms{suffix}"

    def fails(step: int, table: pd.DataFrame) -> None:
        if step == 4:
            raise error

    with pytest.raises(error):
        train(chain(2), batches(6), [path, fails])
    assert read(path).groupby("step").size().to_dict() == {0: 16, 2: 16, 4: 16}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("lost", [1, 40, 700])
def test_a_step_of_which_rows_are_missing_is_measured_again(lost: int, tmp_path: Path) -> None:
    """As after a power failure: the file ends in the middle of a row."""
    path, xs, model = tmp_path / "norms.csv", batches(5), chain(2)
    train(model, xs[:3], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    cut = read_steps(whole[:-lost])
    train(model, xs[3:], path, start=3)
    kept = from_csv(path.read_text()).groupby("step").size().to_dict()
    assert kept == {**dict.fromkeys(cut[:-1], 16), 4: 16}


def read_steps(data: bytes) -> list[int]:
    lines = data[: data.rfind(b"\n")].decode().splitlines()[1:]
    return sorted({int(line.split(",")[0]) for line in lines})


def test_a_step_that_is_cut_anywhere_is_measured_again_and_no_other(tmp_path: Path) -> None:
    """In each place of its first two rows and of its last, at the ends of lines too."""
    path = tmp_path / "norms.csv"
    train(chain(2), batches(3), path, measure=[gradient_norms, path_contributions])  # of which one has no depth
    table, data = read(path), path.read_bytes()
    starts = [0, *accumulate(map(len, data.splitlines(keepends=True)))]
    first, end = 1 + len(table) // 2, 1 + len(table)
    for place in (*range(starts[first], starts[first + 2] + 1), *range(starts[end - 1], starts[end] + 1)):
        path.write_bytes(data[:place])
        sink = CsvFile(path, start=2)
        sink(0, table)
        assert path.read_bytes() == data[: starts[end if place == starts[end] else first]], place
        sink(2, table[table["step"] == 2])
        assert read(path).equals(table), place


HEADER = "step,probe,block,quantity,value\n"
A, B, LONG = (f"{{}},gradient_norms,{block},total,1.0\n" for block in ("a", "b", "caf\u00e9"))


@pytest.mark.parametrize(
    ("start", "rows", "kept"),
    [
        (1, [A.format(0), B.format(0), A.format(1)], [0, 0]),
        (2, [A.format(0), B.format(0), A.format(1)], [0, 0, 1]),  # it is not trained again
        (1, [A.format(0), B.format(0), B.format(1)], [0, 0, 1]),  # what is missing lies before: dropped at random
        (1, [A.format(0), A.format(1), B.format(1)], [0, 1, 1]),
        (20, [A.format(0), A.format(10), "20,grad"], [0, 10]),
        (20, [A.format(0), A.format(10), "2"], [0, 10]),
        (20, [A.format(10), B.format(10), "10,grad"], []),
        (20, [A.format(0), A.format(10), LONG.format(20)[:22]], [0, 10]),
    ],
)
def test_which_steps_of_a_cut_file_are_kept(start: int, rows: list[str], kept: list[int], tmp_path: Path) -> None:
    path = tmp_path / "norms.csv"
    path.write_bytes((HEADER + "".join(rows)).encode()[: len(HEADER + "".join(rows))])  # within a letter of two bytes
    sink = CsvFile(path, start)
    sink(99, from_csv(HEADER + A.format(99)))
    assert read(path)["step"].tolist() == [*kept, 99]


@pytest.mark.parametrize("text", ["step,pro", "step,probe,block,value\n", "step,probe,block,value\n0,gradient_no"])
def test_a_file_without_a_whole_row_begins_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / "norms.csv"
    path.write_text(text)
    train(chain(1), batches(1), path, start=2)
    assert from_csv(path.read_text())["step"].unique().tolist() == [2]


def test_a_full_disk_leaves_the_rows_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "norms.csv", os.write
    train(chain(1), batches(1), path)
    before = path.read_bytes()
    monkeypatch.setattr(places.os, "write", lambda file, data: real(file, data[:10]))
    with pytest.raises(OSError, match=r"norms.csv' took 10 of \d+ bytes: is the disk full?"):
        train(chain(1), batches(1), path, start=2)
    assert path.read_bytes() == before


def test_parquet_needs_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"norms.parquet needs pyarrow \(pip install pyarrow\): or give a path"):
        train(chain(1), batches(1), tmp_path / "norms.parquet")


def test_other_processes_of_a_group_write_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        train(chain(1), batches(2), tmp_path / f"{rank}.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["0.csv"]


def test_a_group_that_a_trainer_forms_when_the_first_step_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (1, 0):
        model, kept = chain(1), Kept()
        with track(model, every=1, to=kept.__setitem__), monkeypatch.context() as group:
            group.setattr(torch.distributed, "is_initialized", lambda: True)
            group.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            for x in batches(2):
                squares(model(x)).backward()
                SGD(model.parameters(), lr=0.05).step()
        assert list(kept) == ([] if rank else [0, 1])
