"""`gate` and `record` under DistributedDataParallel: two processes train as one does on the joined batch."""

from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from probes import gate, gradient_norms, record
from tests.support.gated_by_hand import model

STEPS, PROCESSES = 3, 2


def batch(step: int) -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(network: nn.Module, call: nn.Module, share: slice) -> dict[str, Tensor]:
    """Weights after some steps, and the last gradients."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        call(batch(step)[share]).square().mean().backward()
        optimizer.step()
    gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return dict(network.state_dict()) | gradients


WATCHED = {"wrapper": "module.", "module": ""}  # what the contexts are given, and how its junctions' names begin


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    try:
        for watched in WATCHED:
            network = model()
            call = DistributedDataParallel(network)
            seen = call if watched == "wrapper" else network
            share = slice(2 * rank, 2 * rank + 2)
            with gate(seen, shortcut_gradient=0.0), record(seen) as recording:
                result: dict[str, object] = dict(train(network, call, share))
            result["forks"] = gradient_norms(recording)["block"].unique().tolist()
            torch.save(result, f"{folder}/{watched}{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_train_as_one_does_by_hand(tmp_path: Path) -> None:
    """Several steps: a parameter without a gradient would fail the second one. Nothing needs find_unused_parameters."""
    mp.spawn(worker, (str(tmp_path),), nprocs=PROCESSES)  # pyright: ignore[reportPrivateImportUsage]
    by_hand, bare = model(0.0), model()
    wanted, ungated = train(by_hand, by_hand, slice(None)), train(bare, bare, slice(None))
    for (watched, prefix), rank in product(WATCHED.items(), range(PROCESSES)):
        got = torch.load(tmp_path / f"{watched}{rank}.pt", weights_only=True)
        assert got.pop("forks") == [f"{prefix}{index}" for index in (1, 2, 3)]
        assert got.keys() == wanted.keys()
        # The mean over two halves is summed in another order than the mean over the whole.
        assert all(torch.allclose(got[name], wanted[name], rtol=1e-12, atol=1e-14) for name in wanted)
        assert not torch.allclose(got["0.weight.grad"], ungated["0.weight.grad"], rtol=1e-3)
