"""Parameters that require no gradient leave no leaf in autograd's graph: where they act is seen as the model runs."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves


class Frozen:
    """Watches for the frozen parameters of a model, also where something was made of them alone (a cast, a norm)."""

    def __init__(self, parameters: Iterable[Tensor] = (), buffers: Iterable[Tensor] = ()) -> None:
        held = [p for p in parameters if not p.requires_grad and p.is_floating_point()]
        self._made_of_them: dict[int, Tensor] = {id(tensor): tensor for tensor in held}
        self._buffers = {id(buffer) for buffer in buffers} if held else set[int]()
        self.nodes: set[Node] = set()
        """The nodes of autograd's graph that act with them."""

    def __bool__(self) -> bool:
        return bool(self._made_of_them)

    def act(self, inputs: Any, outputs: Any) -> None:
        """Note what an operation was given and what it made of it."""
        given = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        frozen = [id(x) in self._made_of_them for x in given]
        if not any(frozen):
            return
        for tensor in (x for x in tree_leaves(outputs) if isinstance(x, Tensor)):
            if tensor.grad_fn is not None:
                self.nodes.add(tensor.grad_fn)
            elif all(known or id(x) in self._buffers for known, x in zip(frozen, given, strict=True)):
                self._made_of_them[id(tensor)] = tensor
