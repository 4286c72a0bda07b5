"""Where a recording measures: a site for every junction, or for every block named by hand."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .discovery.classify import JunctionMatch
from .discovery.junctions import Junction
from .norms import norms_and_cosine, norms_and_rest


@dataclass(eq=False)
class Site:
    """One place in depth where the gradient is recorded: a junction's fork, or the input of a named block.

    Norms are L2 over the whole batch tensor, of the gradient of the loss as given; float64 without dimensions, on the
    model's device.
    """

    quantities: ClassVar[tuple[str, ...]] = ("total",)
    """The names in `norms` once a gradient has come."""
    name: str
    """The junction's or the block's name, in the column ``block`` of the tables."""
    depth: int
    """Index in execution order, from 0 at the input."""
    norms: dict[str, Tensor] = field(default_factory=dict)
    """Of the gradient at the fork x, "total"; at a junction also "shortcut" and "branch", what of it came back through
    either addend, and "other", what came by neither."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """The gradients themselves, in x's shape, as far as they are kept, and "junction", the gradient of the sum."""
    fork: Tensor | None = None
    """x itself, where it is kept; of a junction, where a module took or gave it or the shortcut is it."""


@dataclass(eq=False)
class JunctionSite(Site):
    """A recorded junction, beside the gradients at its fork."""

    quantities: ClassVar[tuple[str, ...]] = ("total", "shortcut", "branch", "other")
    junction: Junction = field(kw_only=True)
    add: Node = field(kw_only=True)
    match: JunctionMatch = field(kw_only=True)
    """Its place in autograd's graph."""
    sizes: dict[str, Tensor] = field(default_factory=dict)
    """Norms of the addends "branch" and "shortcut" as they were added, and their "cosine"."""
    shortcut: Tensor = field(default_factory=lambda: torch.empty(0))
    branch: Tensor = field(default_factory=lambda: torch.empty(0))
    """The addends themselves, (N, C, H, W) or (N, T, D), where they are kept."""
    sum: Tensor = field(default_factory=lambda: torch.empty(0))
    """What the add gave, where it is kept."""
    output: Tensor | None = None
    """The sum behind the activation of the module that adds, where it is kept and there is one."""
    module: str | None = None
    """The module whose output the branch's addend is, if it is one's."""
    factor: float = math.nan
    """What the branch was multiplied by: 1 by nothing; of a tensor the root mean square; nan where it is not known."""
    has_part_hooks: bool = False
    """Whether the gradients that enter the fork by either addend are recorded yet."""

    def measure_addends(self, shortcut: Tensor, branch: Tensor) -> None:
        """Take the addends' sizes now: later, the model may have overwritten them."""
        sizes = norms_and_cosine(branch, shortcut)
        self.sizes = dict(zip(("branch", "shortcut", "cosine"), sizes, strict=True))

    def magnitudes(self) -> dict[str, float]:
        """The addends' sizes, their "ratio" (nan where the shortcut is zero) and their "cosine"."""
        sizes = {name: self.sizes[name].item() for name in ("branch", "shortcut")}
        ratio = sizes["branch"] / sizes["shortcut"] if sizes["shortcut"] else math.nan
        return sizes | {"ratio": ratio, "cosine": self.sizes["cosine"].item()}

    def measure_gradients(self) -> None:
        """Take the norms of the gradient and its parts."""
        total = self.gradients["total"]
        nothing = total.new_zeros(()).expand_as(total)
        shortcut, branch = (self.gradients.get(name, nothing) for name in ("shortcut", "branch"))
        norms = norms_and_rest(total, shortcut, branch)
        self.norms = dict(zip(self.quantities, norms, strict=True))
