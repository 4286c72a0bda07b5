"""Models whose adds cannot be intercepted (compiled, traced, replicated ...): refused with an error, not missed."""

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack

REFUSED = (
    "{} hides the model's adds, so its junctions cannot be seen: {}; leave it out while gating, recording or looking "
    "for junctions"
)
CURES = {
    "torch.compile": "use the module as it was before torch.compile",
    "torch.export or torch.jit": "export or trace outside of this context",
    "torch.func": "differentiate with autograd",
    "DataParallel": "use its .module, or DistributedDataParallel",
    "reentrant activation checkpointing": "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
}


def refusal(what: str) -> RuntimeError:
    """The error that names what hides the adds, and the cure."""
    return RuntimeError(REFUSED.format(what, CURES[what]))


def runs_outside(name: str) -> RuntimeError:
    """The error of a module that runs where the model does not."""
    return RuntimeError(
        f"{name!r} runs by itself, outside of the model's own call, where it is not seen: call the model itself (not "
        "its .forward), or give this part instead of the model"
    )


def refuse_modules(modules: Iterable[nn.Module]) -> None:
    """Raise where one of a model's modules is compiled, scripted, replicated or quantised for inference."""
    for module in modules:
        kind = type(module)  # a model that can be quantised adds by FloatFunctional, which is no layer
        if kind.__module__.startswith("torch.ao.nn.quantized") and not kind.__name__.endswith("FloatFunctional"):
            raise RuntimeError(
                f"torch.ao.nn.quantized's {type(module).__name__} passes no gradient back, so that junctions would be "
                "missed: measure the model as it was before, or quantise its weights alone (torchao, bitsandbytes)"
            )
        if isinstance(module, nn.DataParallel):
            raise refusal("DataParallel")
        if isinstance(module, torch.jit.ScriptModule):
            raise refusal("torch.export or torch.jit")
        in_place = getattr(module, "_compiled_call_impl", None) is not None
        if in_place or hasattr(module, "_orig_mod") or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise refusal("torch.compile")


def refuse_transforms() -> None:
    """Raise where the model runs under a tracer or a function transform."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise refusal("torch.export or torch.jit")
    if torch.compiler.is_compiling():
        raise refusal("torch.compile")
    if peek_interpreter_stack() is not None:
        raise refusal("torch.func")


def refuse_checkpoint(name: str) -> None:
    """Raise where a sum that is to be weighted is computed under activation checkpointing, of either kind."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
        frame = frame.f_back
    if frame is not None:
        raise RuntimeError(
            f"gate: {name!r} is under activation checkpointing, which computes the forward again without its forward "
            "weights: leave checkpointing out, or gate gradients alone"
        )


def called_by_checkpoint(frame: FrameType | None) -> bool:
    """Whether reentrant checkpointing is among the callers."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("checkpoint.py") and frame.f_code.co_name == "forward":
            return True
        frame = frame.f_back
    return False


def is_sharded(x: object) -> bool:
    """Whether something is a DTensor, of which this process holds a part."""
    loaded: Any = sys.modules.get("torch.distributed.tensor")  # importing it takes a second, and there would be none
    return loaded is not None and isinstance(x, loaded.DTensor)


def refuse_sharded_activation(x: object, name: str) -> None:
    """Raise where what a model computes there is a DTensor: a norm of it would be of this process's part, or fail."""
    if is_sharded(x):
        raise RuntimeError(
            f"tensor parallelism keeps {name!r} as a DTensor, of which this process holds a part: have the parallel "
            "modules give local tensors there (use_local_output=True, their default), or measure the model before "
            "parallelize_module"
        )


def refuse_sharded_parameters(parameters: Iterable[object], caller: str) -> None:
    """Raise where a model's parameters are DTensors, and a measurement needs whole ones."""
    if any(map(is_sharded, parameters)):
        raise ValueError(
            f"{caller}: the parameters are DTensors (FSDP2, tensor parallelism), of which this process holds a part: "
            "measure an unsharded copy of the model, with the weights of torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
        )
