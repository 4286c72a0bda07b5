"""The benchmarks at their smallest: they run and print a ratio with its interval. No test asks how fast anything is."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import peers
from benchmarks.handwritten import HandwrittenResNet
from benchmarks.rounds import Interval, interleave, judged, median, show_table
from experiments.engine.running.cli import run_script
from models import cifar_resnet

ROOT = Path(__file__).parents[1]
SHARED = {"rounds", "resident", "handwritten"}
BENCHMARKS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - SHARED)
# Their memory is that of fresh processes: half a minute each, even quick.
SLOW = {"grid_memory", "overhead", "paths", "peers"}
RATIO = re.compile(r"[\d.]+%? \[[\d.]+%?, [\d.]+%?\]")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_asks_a_question_and_can_be_quick(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        run_script(f"benchmarks.{name}")
    shown = capsys.readouterr().out
    assert "?" in shown.split("options")[0]
    assert "--quick" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - SLOW))
def test_it_prints_a_ratio_with_its_interval_and_the_machine(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    run_script(f"benchmarks.{name}")
    shown = capsys.readouterr().out
    assert RATIO.search(shown)
    assert "nan" not in shown
    assert shown.splitlines()[-1].endswith(f"torch {torch.__version__}")


def test_rounds_are_interleaved_and_warm_up_rounds_do_not_count() -> None:
    """By a clock that every call moves by what the kind costs, ten times as much in the first round."""
    now, calls = 0.0, []

    def cost(kind: str, seconds: float) -> None:
        nonlocal now
        calls.append(kind)
        now += seconds * (10 if len(calls) <= 2 else 1)

    kinds = {"a": lambda: cost("a", 1), "b": lambda: cost("b", 3)}
    found = interleave(kinds, rounds=8, clock=lambda: now)
    assert {kind: seconds.tolist() for kind, seconds in found.items()} == {"a": [1] * 8, "b": [3] * 8}
    rounds = [tuple(calls[start : start + 2]) for start in range(0, 18, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_an_interval_is_judged_by_both_its_ends() -> None:
    found = median(np.array([1.0, 2.0, 2.0, 2.0, 3.0]))
    assert 1 <= found.low <= found.median == 2 <= found.high <= 3
    for low, high, word in ((1.7, 1.8, "holds"), (1.5, 1.8, "undecided"), (1.4, 1.5, "does not hold")):
        assert judged("b", Interval(low, low, high), least=1.6) == f"bound: b: {word}"


def test_a_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.csv"
    rows = [("a", "1.00 [1.00, 1.00]"), ("b, c", "2.00 [1.50, 2.50]")]
    show_table(["ratio [95 %]"], iter(rows), Console(width=100), title="a network", to=file)
    shown = capsys.readouterr().out
    assert all(cell in shown for row in rows for cell in row)
    with file.open(newline="") as opened:
        assert list(csv.reader(opened)) == [["a network", "ratio [95 %]"], *map(list, rows)]


def test_ways_that_need_no_other_package_find_the_same_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks and `record`, as `check` compares all ways; a gradient that is off by a thousandth is noticed."""
    ways = ["bare step", "hand-written hooks", "record"]
    peers.check(peers.make_cases("cifar_resnet(8)", ways))
    wrong = peers.make_cases("cifar_resnet(8)", ways)
    loss = wrong["record"].loss
    monkeypatch.setattr(wrong["record"], "loss", lambda output: 1.001 * loss(output))
    with pytest.raises(AssertionError, match="record"):
        peers.check(wrong)


def test_missing_packages_are_named_with_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.installed(Console(width=100)) == []
    shown = capsys.readouterr().out
    assert "left out: nnsight is not installed: pip install nnsight" in shown
    assert "left out: torchlens is not installed: pip install torchlens" in shown


def test_lines_are_statements_without_docstring_and_imports() -> None:
    assert peers.lines("record") == 3  # with, the step, return
    assert peers.lines("bare step") == 1


@pytest.mark.parametrize(("depth", "width"), [(8, 4), (20, 8)])
def test_the_handwritten_network_is_ours_to_the_last_bit(depth: int, width: int) -> None:
    ours = cifar_resnet(depth, width=width)
    theirs = HandwrittenResNet(depth, width=width)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(4, 3, 8, 8)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)  # float32; the pooling sums otherwise
