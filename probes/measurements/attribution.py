"""How much of a score goes through the shortcut, and how much through the branch?"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..discovery.adds import Add, AddMode, intercept_adds
from ..discovery.junctions import Junction
from ..gradients.lesions import AddReplacer, adds_per_call
from ..tables import table

Target = int | Tensor | None


def branch_attribution(
    model: nn.Module,
    junctions: Sequence[Junction],
    inputs: Tensor,
    *,
    target: Target,
    baselines: Tensor | None = None,
    steps: int = 32,
    read: Callable[[Any], Tensor] = lambda output: output,
) -> pd.DataFrame:
    """Integrated gradients of a class score on the two addends of every junction.

    At each junction the two addends move on a straight line from what they are for ``baselines`` to what they are for
    ``inputs``, while the rest of the network stays; the score's change is shared out among them (Sundararajan et al.
    2017, arXiv:1703.01365, computed by captum). It takes ``steps`` forwards and backwards for each junction.

    Args:
        model: The model, in eval mode.
        junctions: Of ``find_junctions(model, inputs)``; their addends must be batch-first.
        inputs: The model's one argument, (N, ...).
        target: The class whose score counts, one for all or (N,); None where the scores are (N,).
        baselines: Where the line begins, of the shape of ``inputs``; zeros by default.
        steps: Of the integral (Gauss-Legendre).
        read: From the model's output to the scores, (N, classes) or (N,).

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``shortcut`` and ``branch``: their parts of the change;
        - ``score``: the difference that they should sum to, score(inputs) - score(baselines);
        - ``delta``: by how much the sum misses the difference between the two ends of the line (captum's convergence
          delta), as a mean of absolute values.

        All are means over the batch, in the score's units. Where the sum misses the score though ``delta`` is small, a
        route leads around the junction.

    Raises:
        ValueError: The model is in train mode, there are no junctions or they are another model's, baselines have
            another shape, or scores and target do not fit together.
        ModuleNotFoundError: captum is not installed.

    Example::

        model.eval()
        branch_attribution(model, find_junctions(model, images), images, target=labels)
    """
    from captum.attr import IntegratedGradients

    baselines = torch.zeros_like(inputs) if baselines is None else baselines
    _check(model, junctions, inputs, baselines, steps)
    ends, starts = (_addends(model, junctions, x) for x in (inputs, baselines))
    score = _score(model, inputs, read, target) - _score(model, baselines, read, target)
    rows: list[dict[str, object]] = []
    for junction in junctions:
        attribution = IntegratedGradients(_rest(model, junction, read), multiply_by_inputs=True)
        parts, delta = attribution.attribute(
            ends[junction.name],
            starts[junction.name],
            target=target,
            additional_forward_args=(inputs,),
            n_steps=steps,
            internal_batch_size=len(inputs),
            return_convergence_delta=True,
        )
        shortcut, branch = (part.sum().item() / len(inputs) for part in parts)
        values = {"shortcut": shortcut, "branch": branch, "score": score, "delta": delta.abs().mean().item()}
        rows += [
            {"block": junction.name, "depth": junction.depth, "quantity": k, "value": v} for k, v in values.items()
        ]
    return table(rows)


def _check(model: nn.Module, junctions: Sequence[Junction], inputs: Tensor, baselines: Tensor, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"branch_attribution: steps is {steps}; give at least 1")
    if any(module.training for module in model.modules()):
        raise ValueError(
            "branch_attribution: call model.eval() first: in train mode a score depends on its whole batch"
        )
    if not junctions:
        raise ValueError("branch_attribution: no junctions; give those of find_junctions(model, inputs)")
    if baselines.shape != inputs.shape:
        raise ValueError(
            f"branch_attribution: baselines {tuple(baselines.shape)} and inputs {tuple(inputs.shape)} differ in shape"
        )


class _OperandKeeper(AddMode):
    """Keeps the two operands of some adds."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        super().__init__(model)
        self.wanted, self.kept = names, dict[str, tuple[Tensor, Tensor]]()

    def on_add(self, add: Add) -> Tensor:
        if add.name in self.wanted:
            self.kept[add.name] = (add.addend(0).detach().clone(), add.addend(1).detach())
        return add.execute()


def _addends(model: nn.Module, junctions: Sequence[Junction], inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The shortcut's and the branch's value at each junction."""
    keeper = _OperandKeeper(model, {name for junction in junctions for name, _ in junction.adds})
    with torch.no_grad(), intercept_adds(keeper):
        model(inputs)
    found = {}
    for junction in junctions:
        if missing := [name for name, _ in junction.adds if name not in keeper.kept]:
            raise ValueError(f"branch_attribution: no add is called {missing[0]} here: whose junctions are these?")
        (first, branch_operand), *_ = junction.adds
        if len(keeper.kept[first][0]) != len(inputs):
            raise ValueError(
                f"branch_attribution: at {junction.name!r} the addends' first dimension is "
                f"{len(keeper.kept[first][0])}, not the batch's {len(inputs)}: addends must be batch-first"
            )
        branches = [keeper.kept[name][operand] for name, operand in junction.adds]
        found[junction.name] = (keeper.kept[first][1 - branch_operand], torch.stack(branches).sum(0))
    return found


def _rest(model: nn.Module, junction: Junction, read: Callable[[Any], Tensor]) -> Callable[..., Tensor]:
    """The rest of the network, as a function of a junction's two addends."""

    def rest(shortcut: Tensor, branch: Tensor, inputs: Tensor) -> Tensor:
        replaced = {junction.name: lambda add: shortcut + branch}
        with intercept_adds(AddReplacer(model, replaced, adds_per_call([junction]))):
            return read(model(inputs))

    return rest


@torch.no_grad()
def _score(model: nn.Module, inputs: Tensor, read: Callable[[Any], Tensor], target: Target) -> float:
    scores = read(model(inputs))
    classes = scores.shape[1] if scores.ndim == 2 else 0
    if scores.ndim > 2 or (target is None) == bool(classes) or (target is not None and not _within(target, classes)):
        raise ValueError(
            f"branch_attribution: the scores have shape {tuple(scores.shape)} and target is {target}: give scores "
            "(N, classes) and a target from 0 to classes - 1, or scores (N,) and target=None; see `read`"
        )
    chosen = scores if target is None else scores[torch.arange(len(scores)), target]
    return chosen.double().mean().item()


def _within(target: int | Tensor, classes: int) -> bool:
    chosen = torch.as_tensor(target)
    return bool(((chosen >= 0) & (chosen < classes)).all())
