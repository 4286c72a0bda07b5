"""Workers on one machine: how many processes, and on which GPU."""

import os
import signal
from pathlib import Path

import pytest
import torch

from experiments.engine.running.workers import CORES, Execution, begin_worker, worker_number

CPU = torch.device("cpu")


def test_there_are_as_many_as_cores_unless_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert Execution().max_parallel(CPU) == CORES
    assert Execution(3).max_parallel(CPU) == 3
    Execution(CORES).check("cpu")
    assert not capsys.readouterr().err
    Execution(CORES + 1).check("cpu")
    assert (
        capsys.readouterr().err == f"--workers {CORES + 1}: more than the {CORES} cores here, so each will be slower\n"
    )


def test_workers_are_numbered_and_take_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for _ in range(3):
        begin_worker(os.getppid(), tmp_path / "runs")
    assert taken == [0, 1, 0]
    begin_worker(os.getppid())  # one GPU, or none: nothing to choose
    assert len(taken) == 3
    assert worker_number(tmp_path / "runs") == 3
    (tmp_path / "another").mkdir()
    assert worker_number(tmp_path / "another" / "runs") == 0
