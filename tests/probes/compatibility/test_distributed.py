"""Two processes that train one network, as one process does it: DistributedDataParallel, FSDP2, tensor parallelism."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from probes import (
    find_junctions,
    gate,
    gradient_alignment,
    gradient_noise,
    gradient_norms,
    path_contributions,
    path_gradients,
    precision,
    record,
    tangent_kernel,
    track,
    update_sizes,
)
from tests.support.gated_by_hand import model
from tests.support.networks import chain, values

STEPS, PROCESSES = 3, 2
Worker = Callable[[int, str], dict[str, Any]]  # of a rank and the folder for files


def batch(step: int) -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def share_of(rank: int) -> slice:
    return slice(2 * rank, 2 * rank + 2)


def train(network: nn.Module, call: nn.Module, share: slice, steps: int = STEPS) -> dict[str, Tensor]:
    """Weights after some steps, and the last gradients."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        call(batch(step)[share]).square().mean().backward()
        optimizer.step()
    gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {
        name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in (network.state_dict() | gradients).items()
    }


def spawned(worker: Worker, folder: Path) -> list[dict[str, Any]]:
    """What the processes leave in their files."""
    mp.spawn(partial(_in_group, worker), (str(folder),), nprocs=PROCESSES)  # pyright: ignore[reportPrivateImportUsage]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def _in_group(worker: Worker, rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    try:
        torch.save(worker(rank, folder), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def totals_by_hand(steps: int, share: slice) -> list[float]:
    """Autograd's gradient at the forks, in one process: before the step of that number, of a share of its batch."""
    network = model(0.0)
    train(network, network, slice(None), steps)
    forks = [network[0](batch(steps)[share])]
    for block in network[1:]:
        forks.append(block(forks[-1]))
    return [g.norm().item() for g in torch.autograd.grad(forks[-1].square().mean(), forks[:-1])]


def assert_trained_as_by_hand(got: dict[str, Tensor]) -> None:
    by_hand, bare = model(0.0), model()
    wanted, ungated = train(by_hand, by_hand, slice(None)), train(bare, bare, slice(None))
    assert got.keys() == wanted.keys()
    # The mean over two halves is summed in another order than the mean over the whole.
    assert all(torch.allclose(got[name], wanted[name], rtol=1e-12, atol=1e-14) for name in wanted)
    assert not torch.allclose(got["0.weight.grad"], ungated["0.weight.grad"], rtol=1e-3)


def assert_tracked(file: Path, prefix: str = "") -> None:
    """The first process has written, once, of its part of the batch, before gradients are averaged."""
    table = pd.read_csv(file, dtype={"block": str})
    assert table["step"].unique().tolist() == [0, 2]
    for step, of_step in table.groupby("step"):
        total = of_step.query("quantity == 'total'")
        assert total["block"].tolist() == [f"{prefix}{index}" for index in (1, 2, 3)]
        assert total["value"].tolist() == pytest.approx(totals_by_hand(int(str(step)), share_of(0)), rel=1e-12)


WATCHED = {"wrapper": "module.", "module": ""}  # what the contexts are given, and how its junctions' names begin


def ddp(rank: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for watched in WATCHED:
        network = model()
        call = DistributedDataParallel(network)
        seen = call if watched == "wrapper" else network
        context = gate(seen, shortcut_gradient=0.0), track(seen, every=2, to=f"{folder}/{watched}.csv")
        with context[0], context[1], record(seen) as recording:
            trained = train(network, call, share_of(rank))
        table = gradient_norms(recording)
        found[watched] = {
            "trained": trained,
            "forks": table["block"].unique().tolist(),
            "total": values(table, "total"),
        }
    return found


def test_ddp_trains_as_one_process_does_by_hand(tmp_path: Path) -> None:
    """Several steps: a parameter without a gradient would fail the second one. Nothing needs find_unused_parameters.

    Each process's norms are of its own part of the batch and of its own loss. The loss of the whole is the mean of
    theirs: its norms are the root of the sum of their squares, over their number.
    """
    found = spawned(ddp, tmp_path)
    for (watched, prefix), rank in product(WATCHED.items(), range(PROCESSES)):
        of_process = found[rank][watched]
        assert of_process["forks"] == [f"{prefix}{index}" for index in (1, 2, 3)]
        assert_trained_as_by_hand(of_process["trained"])
        assert of_process["total"] == pytest.approx(totals_by_hand(STEPS - 1, share_of(rank)), rel=1e-12)
    for watched, prefix in WATCHED.items():
        assert_tracked(tmp_path / f"{watched}.csv", prefix)
        parts = torch.tensor([of_process[watched]["total"] for of_process in found], dtype=torch.float64)
        whole = (parts.square().sum(0).sqrt() / PROCESSES).tolist()
        assert whole == pytest.approx(totals_by_hand(STEPS - 1, slice(None)), rel=1e-12)


def sharded() -> nn.Sequential:
    network = model()
    for module in network:
        fully_shard(module)
    return fully_shard(network)  # pyright: ignore[reportReturnType]


def refusal(run: Callable[[], object]) -> str:
    try:
        run()
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
    return "it was not refused"


def fsdp(rank: int, folder: str) -> dict[str, Any]:
    network: Any = sharded()
    x = batch(0)[share_of(rank)]
    assert isinstance(network[0].weight, DTensor)
    with gate(network, shortcut_gradient=0.0), track(network, every=2, to=f"{folder}/norms.csv"):
        trained = train(network, network, share_of(rank))
    tables = {}
    for name, of_kind in (("sharded", sharded()), ("whole", model())):
        with record(of_kind) as recording:
            of_kind(x).square().mean().backward(retain_graph=True)
        paths = path_contributions(recording)["value"].tolist()
        junctions = [(j.name, j.shortcut) for j in find_junctions(of_kind, x)]
        tables[name] = [gradient_norms(recording)["value"].tolist(), paths, junctions]

    def track_paths() -> None:
        with track(network, every=1, to=f"{folder}/paths.csv", measure=path_contributions):
            raise AssertionError

    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    refusals = {
        "paths": refusal(track_paths),
        "alignment": refusal(lambda: gradient_alignment(gradients, gradients)),
    }
    with record(network) as recording:
        network(x).square().mean().backward(retain_graph=True)
    whole_parameters: dict[str, Callable[[], object]] = {
        "path lengths of parameters": lambda: path_gradients(recording, of="parameters"),
        "gradient_noise": lambda: gradient_noise(network, lambda model, x: model(x).sum(), [x, x]),
        "precision": lambda: precision(network, x),
        "tangent_kernel": lambda: tangent_kernel(network, x),
        "update_sizes": lambda: update_sizes(network, {}, x),
    }
    refusals |= {name: refusal(run) for name, run in whole_parameters.items()}
    return {"trained": trained, "tables": tables, "refusals": refusals}


def tensor_parallel(rank: int, folder: str) -> dict[str, Any]:
    mesh, x = init_device_mesh("cpu", (PROCESSES,)), torch.randn(4, 4, dtype=torch.float64)
    dist.broadcast(x, 0)
    whole: Any = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), *chain(2, width=4))
    for parameter in whole.parameters():
        dist.broadcast(parameter.data, 0)
    parallel = copy.deepcopy(whole)
    distributed: Any = distribute_module(copy.deepcopy(whole), mesh)
    for block in parallel[1:]:
        parallelize_module(block.branch, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    found: dict[str, Any] = {}
    for name, network in (("parallel", parallel), ("whole", whole)):
        with record(network) as recording:
            network(x).square().mean().backward(retain_graph=True)
        paths = path_contributions(recording)["value"].tolist()
        network.zero_grad()
        with gate(network, shortcut_gradient=0.0):
            network(x).square().mean().backward()
        stem: Any = network[0]
        found[name] = [gradient_norms(recording)["value"].tolist(), paths, stem.weight.grad.flatten().tolist()]

    def run(context: Any, placement: Any) -> None:
        with context:
            distributed(distribute_tensor(x, mesh, [placement])).square().mean().backward()

    found["refusals"] = {
        f"{name} {placement}": refusal(lambda context=context, placement=placement: run(context, placement))
        for placement in (Shard(0), Replicate())
        for name, context in (
            ("record", record(distributed)),
            ("gate", gate(distributed, shortcut_gradient=0.0)),
            ("blocks", record(distributed, blocks=[distributed[1]])),
        )
    }
    return found


@pytest.mark.slow
def test_fsdp(tmp_path: Path) -> None:
    """Weights are gathered before a forward: activations and their gradients are those of the process's own batch."""
    for of_process in spawned(fsdp, tmp_path):
        assert_trained_as_by_hand(of_process["trained"])
        (norms, paths, junctions), whole = of_process["tables"]["sharded"], of_process["tables"]["whole"]
        assert norms == pytest.approx(whole[0], rel=1e-12)
        assert paths == pytest.approx(whole[1], rel=1e-12)
        assert junctions == whole[2] == [("1", "identity"), ("2", "projection"), ("3", "identity")]
        refusals = of_process["refusals"]
        for name in ("path lengths of parameters", "gradient_noise", "precision", "tangent_kernel", "update_sizes"):
            assert f"{name}: the parameters are DTensors (FSDP2, tensor parallelism), of which" in refusals[name]
            assert "full_state_dict=True" in refusals[name]
        assert "track: path_contributions runs backwards of its own" in refusals["paths"]
        assert "the gradient of '0.weight' is a DTensor" in refusals["alignment"]
        assert "full_tensor()" in refusals["alignment"]
    assert_tracked(tmp_path / "norms.csv")


@pytest.mark.slow
def test_tensor_parallelism(tmp_path: Path) -> None:
    """Megatron's: branches are split, and the stream is whole in each process; a stream of DTensors is refused."""
    for of_process in spawned(tensor_parallel, tmp_path):
        for parallel, whole in zip(of_process["parallel"], of_process["whole"], strict=True):
            assert parallel == pytest.approx(whole, rel=1e-12, abs=1e-15)
        assert len(of_process["refusals"]) == 6
        for name, message in of_process["refusals"].items():
            assert (
                "as a DTensor, of which this process holds a part: have the parallel modules give local" in message
            ), name
