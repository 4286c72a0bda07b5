"""What does one table cost by TorchLens, by nnsight, by hand-written hooks and by `record`, in every training step?

The table: at every block, the norm of the activation that enters it and that of the loss's gradient there. Each way is
written as its own documentation has it, and takes the norms inside a training step (forward, backward, SGD). Before
anything is timed, all ways must give the same numbers, to 1e-4. `record` gives more than the table in the same call:
the norms of both addends and their cosine, and what of the gradient came by either; where blocks have a `shortcut` and
a `branch`, hooks that take all of that are timed, too. At a projection its activation is what the shortcut carries, so
that activations are compared at identity shortcuts; gradients at all blocks.

Ratios to the bare step are from interleaved rounds in one process, in a random order, on one thread: the median over
rounds with a 95 % bootstrap interval, in seconds of processor time. Each way has its own copy of the network. Both
libraries change torch for the whole process, and nnsight's gradients do not come any more once TorchLens has: each has
a process of its own, with the bare step, the hooks and `record` beside it. Lines are statements of the way's function
below, on one line each, without its imports. Memory is the peak of the process's resident set less what it has once
all is imported, each way in a process of its own. TorchLens and nnsight are no dependencies: where one is missing, its
rows are left out.
"""

import ast
import copy
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from benchmarks.resident import highest_resident
from benchmarks.rounds import interleave, judged, machine, median, show_table
from experiments.engine.running.cli import run_script
from experiments.engine.running.messages import check_choice
from models import cifar_resnet
from probes import find_junctions, gradient_norms, record, residual_magnitudes

Norms = tuple[Sequence[float], Sequence[float]]  # of the activations that enter the blocks, and of their gradients


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    networks: tuple[str, ...] = ("cifar_resnet(56)", "cifar_resnet(56), batch 16", "GPT-2")
    """Which networks: `cifar_resnet(56)` at He et al.'s batch of 128, or at 16, where a step is short beside what is
    done once a block; `GPT-2` (Hugging Face's, 4 layers, width 128); `cifar_resnet(8)`."""
    rounds: int = 10
    """Timed rounds a network; two more warm up."""
    to: Path | None = None
    """A folder for a CSV file of each network, `costs_peers_NETWORK.csv`."""
    quick: bool = False
    """A few rounds of the smallest network, to see it run."""


QUICK = Settings(networks=("cifar_resnet(8)",), rounds=3)


class Case:
    """A network, its batch and its blocks."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor, blocks: list[str], stem: str) -> None:
        self.model, self.inputs, self.targets = model, inputs, targets
        self.blocks = blocks
        """Modules; also the names of their (first) junctions."""
        self.places = [stem, *blocks[:-1]]
        """The modules whose outputs enter the blocks."""
        self.optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def loss(self, output: Any) -> Tensor:
        """Of a classifier's or a language model's output."""
        logits = output if isinstance(output, Tensor) else output.logits
        return F.cross_entropy(logits.flatten(0, -2), self.targets.flatten())

    @cached_property
    def traced(self) -> Any:
        """The model in nnsight's wrapper."""
        from nnsight import NNsight  # pyright: ignore[reportMissingImports]

        return NNsight(self.model)


def resnet(depth: int, *, width: int = 16, batch_size: int = 128, size: int = 32) -> Case:
    """A ResNet on random images."""
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range((depth - 2) // 6)]
    images, labels = torch.randn(batch_size, 3, size, size), torch.randint(10, (batch_size,))
    return Case(cifar_resnet(depth, width=width), images, labels, blocks, "stem")


def gpt2() -> Case:
    """Hugging Face's GPT-2 with random weights, on random tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size: dict[str, Any] = {"vocab_size": 512, "n_positions": 64, "n_embd": 128, "n_layer": 4, "n_head": 4}
    dropout: dict[str, Any] = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(**size, **dropout, bos_token_id=None, eos_token_id=None, use_cache=False)
    tokens = torch.randint(512, (8, 64))
    blocks = [f"transformer.h.{layer}" for layer in range(config.n_layer)]
    return Case(GPT2LMHeadModel(config), tokens, tokens, blocks, "transformer.drop")


NETWORKS: dict[str, Callable[[], Case]] = {
    "cifar_resnet(56)": partial(resnet, 56),
    "cifar_resnet(56), batch 16": partial(resnet, 56, batch_size=16),
    "GPT-2": gpt2,
    "cifar_resnet(8)": partial(resnet, 8, width=4, batch_size=4, size=8),
}


def bare(case: Case) -> None:
    """No table: what the others are compared with."""
    case.loss(case.model(case.inputs)).backward()


def hooks(case: Case) -> Norms:
    """A forward hook at every module, which puts a hook on its output."""
    sizes: list[Tensor] = []
    gradients: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        sizes.append(output.detach().norm())
        output.register_hook(lambda gradient: gradients.append(gradient.norm()))

    handles = [case.model.get_submodule(name).register_forward_hook(keep) for name in case.places]
    case.loss(case.model(case.inputs)).backward()
    for handle in handles:
        handle.remove()
    return torch.stack(sizes).tolist(), torch.stack(gradients[::-1]).tolist()


def hooks_for_all(case: Case) -> Norms:
    """Hooks at both addends of blocks that have a `shortcut` and a `branch`, for all that `record` gives: the norms of
    the addends and their cosine; those of the gradient at the fork, of what came by either addend, and of the rest."""
    sizes: list[Tensor] = []
    gradients: list[Tensor] = []
    handles: list[Any] = []

    def hook(block: Any) -> None:
        values: list[Tensor] = []
        passed: list[Tensor] = []

        def fork(module: nn.Module, args: Any) -> Any:
            x = args[0].view_as(args[0])
            x.register_hook(finish)
            return (x,)

        def enter(module: nn.Module, args: Any) -> Any:
            x = args[0].view_as(args[0])
            x.register_hook(passed.append)
            return (x,)

        def leave(module: nn.Module, args: Any, output: Tensor) -> None:
            values.append(output.detach())

        def added(module: nn.Module, args: Any, output: Tensor) -> None:
            size = [value.norm() for value in values]
            cosine = torch.dot(values[0].flatten(), values[1].flatten()) / size[0] / size[1]
            sizes.append(torch.stack([*size, cosine]))
            values.clear()

        def finish(total: Tensor) -> None:
            rest = (total - (passed[0] + passed[1])).norm()
            gradients.append(torch.stack([total.norm(), *(part.norm() for part in passed), rest]))

        handles.append(block.register_forward_pre_hook(fork))
        handles.extend(module.register_forward_pre_hook(enter) for module in (block.shortcut, block.branch))
        handles.extend(module.register_forward_hook(leave) for module in (block.shortcut, block.branch))
        handles.append(block.register_forward_hook(added))

    for name in case.blocks:
        hook(case.model.get_submodule(name))
    case.loss(case.model(case.inputs)).backward()
    for handle in handles:
        handle.remove()
    return torch.stack(sizes)[:, 0].tolist(), torch.stack(gradients[::-1])[:, 0].tolist()


def recorded(case: Case) -> Any:
    """`record`, which finds the blocks by itself."""
    with record(case.model) as recording:
        case.loss(case.model(case.inputs)).backward()
    return residual_magnitudes(recording), gradient_norms(recording)


def nnsight_traced(case: Case) -> Norms:
    """A trace with a backward inside it, in which gradients are asked for from the last to the first."""
    import nnsight  # pyright: ignore[reportMissingImports]

    with case.traced.trace(case.inputs):
        sizes = nnsight.save([])
        gradients = nnsight.save([])
        outputs = []
        for name in case.places:
            outputs.append(case.traced.get(name).output)
            sizes.append(outputs[-1].detach().norm())
        loss = case.loss(case.traced.output)
        with loss.backward():  # pyright: ignore[reportOptionalContextManager]
            for output in reversed(outputs):
                gradients.append(output.grad.norm())
    return torch.stack(sizes).tolist(), torch.stack(gradients[::-1]).tolist()


def torchlens_traced(case: Case) -> Norms:
    """The graph of all operations, as its README begins."""
    import torchlens  # pyright: ignore[reportMissingImports]

    trace = torchlens.trace(
        case.model, case.inputs, capture=torchlens.options.CaptureOptions(save_grads=True, backward_ready=True)
    )
    trace.log_backward(F.cross_entropy(trace[trace.output_layers[0]].out.flatten(0, -2), case.targets.flatten()))
    sizes = [trace[name].out.norm().item() for name in case.places]
    gradients = [trace[name].grad.norm().item() for name in case.places]
    trace.cleanup()
    return sizes, gradients


def torchlens_recorded(case: Case) -> Norms:
    """Chosen operations alone, as its guide to performance has it for loops."""
    import torchlens  # pyright: ignore[reportMissingImports]

    chosen = reduce(or_, map(torchlens.module, case.places))
    output, recording = torchlens.record(case.model, case.inputs, save=chosen, backward_ready=True, return_output=True)
    labels = [kept.ctx.label.rsplit("_", 2)[0] for kept in recording]
    sizes = [kept.ram_payload.norm().item() for kept in recording]
    recording.log_backward(case.loss(output), save_grads=lambda about: about.layer_label in labels)
    gradients = {kept.ctx.layer_label: kept.ram_payload.norm().item() for kept in recording.grad_records}
    return sizes, [gradients[label] for label in labels]


WAYS: dict[str, tuple[Callable[[Case], Any], str | None]] = {  # and the package that it needs
    "bare step": (bare, None),
    "hand-written hooks": (hooks, None),
    "hand-written hooks, all of record's norms": (hooks_for_all, None),
    "record": (recorded, None),
    "nnsight": (nnsight_traced, "nnsight"),
    "TorchLens, trace": (torchlens_traced, "torchlens"),
    "TorchLens, record": (torchlens_recorded, "torchlens"),
}


def installed(console: Console) -> list[str]:
    """The packages that are there; says how to install the others."""
    packages = list(dict.fromkeys(package for _, package in WAYS.values() if package is not None))
    found = [package for package in packages if importlib.util.find_spec(package) is not None]
    for package in packages:
        if package not in found:
            console.print(f"left out: {package} is not installed: pip install {package}")
    return found


def lines(way: str) -> int:
    """The statements of a way's function, on one line each, without its docstring and imports."""
    function = ast.parse(textwrap.dedent(inspect.getsource(WAYS[way][0]))).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = [statement for statement in function.body[1:] if not isinstance(statement, ast.Import | ast.ImportFrom)]
    return sum(len(ast.unparse(statement).splitlines()) for statement in body)


def step(case: Case, way: str) -> Any:
    """One training step, measured in one way."""
    case.optimiser.zero_grad()
    found = WAYS[way][0](case)
    case.optimiser.step()
    return found


def norms(case: Case, found: Any) -> Norms:
    """What a way has found, as plain numbers; of `record` those of the blocks' first junctions."""
    if not hasattr(found[0], "columns"):
        return found
    wanted = (found[0], "shortcut"), (found[1], "total")
    first, second = (
        table[table["quantity"] == quantity].set_index("block")["value"][case.blocks].tolist()
        for table, quantity in wanted
    )
    return first, second


def check(cases: dict[str, Case]) -> None:
    """Raise AssertionError unless all ways find the same norms in one step from the same weights."""
    case = cases["hand-written hooks"]
    shortcuts = {junction.name: junction.shortcut for junction in find_junctions(case.model, case.inputs)}
    carried = [place for place, block in enumerate(case.blocks) if shortcuts[block] == "identity"]
    wanted = norms(case, step(case, "hand-written hooks"))
    for way, other in cases.items():
        if way in ("bare step", "hand-written hooks"):
            continue
        sizes, gradients = norms(other, step(other, way))
        np.testing.assert_allclose(np.array(sizes)[carried], np.array(wanted[0])[carried], rtol=1e-4, err_msg=way)
        np.testing.assert_allclose(gradients, wanted[1], rtol=1e-4, err_msg=way)


def make_cases(network: str, ways: Sequence[str]) -> dict[str, Case]:
    """A copy of the network and its batch for each way that its blocks allow."""
    torch.manual_seed(0)
    case = NETWORKS[network]()
    if not hasattr(case.model.get_submodule(case.blocks[0]), "branch"):
        ways = [way for way in ways if WAYS[way][0] is not hooks_for_all]
    return {
        way: Case(copy.deepcopy(case.model), case.inputs, case.targets, case.blocks, case.places[0]) for way in ways
    }


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of this file returns, by way of JSON, in a Python of its own: TorchLens refuses to run in those
    that multiprocessing starts."""
    code = f"import json; from benchmarks import peers; print(json.dumps(peers.{function.__name__}(*{arguments!r})))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def times(network: str, package: str | None, rounds: int) -> dict[str, list[float]]:
    """Seconds of a package's ways, and of those that need none, in each round; run in a fresh process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = make_cases(network, [way for way, (_, needed) in WAYS.items() if needed in (None, package)])
    check(cases)
    found = interleave({way: partial(step, case, way) for way, case in cases.items()}, rounds=rounds, warm_up=2)
    return {way: seconds.tolist() for way, seconds in found.items()}


def peak_memory(network: str, way: str) -> int:
    """How much the highest resident set grows by three steps of one way, in kilobytes; run in a fresh process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    package = WAYS[way][1]
    if package is not None:
        importlib.import_module(package)
    before = highest_resident()
    case = make_cases(network, [way])[way]
    for _ in range(3):
        step(case, way)
    return highest_resident() - before


def main(settings: Settings) -> None:
    """Run the benchmark and print its tables."""
    for network in settings.networks:
        check_choice("--networks", network, tuple(NETWORKS))
    if settings.to is not None:
        settings.to.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    packages = installed(console)
    for network in settings.networks:
        runs = [
            {way: np.array(seconds) for way, seconds in in_a_process(times, network, package, settings.rounds).items()}
            for package in packages or [None]
        ]
        peak = {
            way: in_a_process(peak_memory, network, way) for way in dict.fromkeys(way for run in runs for way in run)
        }
        show(console, settings, network, runs, peak)
    console.print(machine())


def show(
    console: Console, settings: Settings, network: str, runs: list[dict[str, np.ndarray]], peak: dict[str, int]
) -> None:
    """The table of one network, and whether the bounds hold. runs: seconds of each way, from each process."""
    case = NETWORKS[network]()
    title = f"{network}, {len(case.blocks)} blocks, inputs {tuple(case.inputs.shape)}, {settings.rounds} rounds"
    rows: dict[str, tuple[str, ...]] = {}
    bounds: list[str] = []
    for run in runs:
        for way in run.keys() - rows.keys():
            rows[way] = (
                way,
                f"{1000 * median(run[way]).median:.0f}",
                f"{median(run[way] / run['bare step']):.2f}",
                f"{peak[way] / 1024:.0f}",
                str(lines(way)) if way != "bare step" else "",
            )
            if way not in ("bare step", "record"):
                most = 1.1 if way.startswith("hand-written") else 1.0
                ratio = median(run["record"] / run[way])
                bounds.append(judged(f"record, at most {most:g} x {way}: {ratio:.2f}", ratio, most=most))
    head = ("milliseconds", "ratio to bare [95 %]", "peak memory, MiB", "lines")
    name = re.sub(r"\W+", "_", network).strip("_").lower()
    to = settings.to / f"costs_peers_{name}.csv" if settings.to else None
    show_table(head, [rows[way] for way in WAYS if way in rows], console, title=title, to=to)
    for bound in sorted(bounds):
        console.print(bound)


if __name__ == "__main__":
    run_script("benchmarks.peers")
