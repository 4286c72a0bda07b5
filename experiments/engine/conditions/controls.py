"""Controls as data: how a step's update is made of the arm's gradient and the true one, and when shortcuts are cut.

The training loop is the same for all, and knows none: it calls a `Backward` that was prepared for the network.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import (
    Gradients,
    assign,
    block_names,
    flat,
    gradients,
    groups,
    stages,
)
from experiments.engine.training.loop import Backward, Moment, backpropagation
from models import Flow, permuted_shortcuts, random_feedback, residual_blocks, set_flows
from models.feedback import PermutedShortcuts
from probes import limit_paths
from probes.gradients.path_limits import PathLimit

Rule = Literal["own", "true-norm", "own-norm", "noise", "placebo"]
UpdateRule = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Cut:
    """Which shortcuts pass a weighted gradient, and when. The others keep the arm's own weights.

    weight: of the gradient through a shortcut that is cut. begin, end: the epochs from `begin` to before `end`. stage:
    1, 2 or 3 alone. every: the last of each k blocks. chance: each of those is cut by a coin toss of its own in each
    step. unbiased: shortcuts that the coin spares pass (1 - chance * weight) / (1 - chance), so that the expected
    gradient is the true one (backward is linear in each block's weight, and the tosses are independent).

    Raises ValueError for a chance outside of 0 to 1, or at 1 with `unbiased`, for every < 1 or end <= begin.
    """

    weight: float = 0.0
    begin: int = 0
    end: int | None = None
    stage: int | None = None
    every: int = 1
    chance: float = 1.0
    unbiased: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1 or (self.unbiased and self.chance == 1):
            raise ValueError(f"a chance of {self.chance}: give 0 to 1, and less than 1 if it is to be unbiased")
        if self.every < 1 or (self.end is not None and self.end <= self.begin):
            raise ValueError(f"every {self.every}, epochs {self.begin} to {self.end}: such a cut is nowhere")

    def weights(self, stages: Sequence[int], moment: Moment, draws: torch.Generator) -> list[float | None]:
        """Each block's weight at a moment, None where the arm's own stays. stages: that of each block, from 1."""
        tossed = torch.rand(len(stages), generator=draws, dtype=torch.float64) < self.chance
        if moment.epoch < self.begin or (self.end is not None and moment.epoch >= self.end):
            return [None] * len(stages)
        spared = (1 - self.chance * self.weight) / (1 - self.chance) if self.unbiased else None
        return [
            (self.weight if cut else spared) if self._holds(index, stage) else None
            for index, (stage, cut) in enumerate(zip(stages, tossed.tolist(), strict=True))
        ]

    def _holds(self, index: int, stage: int) -> bool:
        return self.stage in (None, stage) and index % self.every == self.every - 1


@dataclass(frozen=True)
class Control:
    """How an arm's update is made.

    cut: whose shortcuts pass less gradient than the arm says, and when. rule: the update of each block (of the stem, of
    the classifier), made of the arm's own gradient and the true one of the same weights; in a placebo, of the arm's own
    one and that with the channels of each shortcut's gradient permuted (`models.permuted_shortcuts`). feedback:
    convolutions in branches pass the gradient back through fixed random weights (Lillicrap et al. 2016, arXiv
    1411.0247). frozen: the share of blocks, from the first, that stay as they began, with all before them; 0: none.
    at_most, at_least: the arm's own gradient is that of paths of so many branches (`probes.limit_paths`): blocks that
    have none get zeros, and what lies behind the last junction always its whole gradient.
    """

    cut: Cut | None = None
    rule: Rule = "own"
    feedback: bool = False
    frozen: float = 0.0
    at_most: int | None = None
    at_least: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule) or not 0 <= self.frozen <= 1:
            raise ValueError(f"rule {self.rule!r}, frozen {self.frozen}: give one of {get_args(Rule)}, and 0 to 1")
        low, high = (0 if limit is None else limit for limit in (self.at_least, self.at_most))
        if low < 0 or high < 0 or (self.at_most is not None and low > high):
            raise ValueError(f"paths of at least {self.at_least} and at most {self.at_most} branches: there are none")

    def prepare(self, model: nn.Module, *, seed: int) -> Backward:
        """The backward of a network's training; random feedback and permutations are built into the network.

        With a limit of paths, its forwards and backwards must run inside its `context`, as in `train`.
        """
        if self.feedback:
            random_feedback(model, torch.Generator().manual_seed(seed))
        if self.without_feedback() == NO_CONTROL:
            return backpropagation
        return _Controlled(self, model, seed=seed)

    def without_feedback(self) -> "Control":
        """What is left to do on a network that random feedback is already built into."""
        return replace(self, feedback=False)


NO_CONTROL = Control()


class _Controlled:
    """A control at work on one network."""

    def __init__(self, control: Control, model: nn.Module, *, seed: int) -> None:
        self.control = control
        self.generators = tuple(torch.Generator().manual_seed(seed) for _ in range(2))
        self.tosses, self.noise = self.generators
        self.flows = [block.flow for block in residual_blocks(model)]
        self.stages, self.groups = stages(model), groups(model)
        if control.cut is not None and control.cut.stage not in (None, *self.stages):
            raise ValueError(f"there is no stage {control.cut.stage} to cut, only {max(self.stages, default=0)}")
        self.frozen = frozen_parameters(model, control.frozen)
        self.limited = (control.at_most, control.at_least) != (None, None)
        if (control.at_least or 0) > len(self.flows):
            raise ValueError(f"no path has {control.at_least} branches: the network has {len(self.flows)} blocks")
        self.limit: PathLimit | None = None
        placebo = control.rule == "placebo"
        self.permuted = permuted_shortcuts(model, torch.Generator().manual_seed(seed)) if placebo else None

    @contextmanager
    def context(self, model: nn.Module) -> Iterator[None]:
        """Limits the paths of the backwards inside, if the control does."""
        if not self.limited:
            yield
            return
        try:
            with limit_paths(model, at_most=self.control.at_most, at_least=self.control.at_least) as self.limit:
                yield
        finally:
            self.limit = None

    def __call__(self, model: nn.Module, loss: Tensor, moment: Moment) -> None:
        if self.limited and self.limit is None:
            raise RuntimeError("this control limits paths: run forwards and backwards inside its `context`")
        own = self._flows(moment)
        try:
            if self.control.rule == "own":
                set_flows(model, own)
                loss.backward()
            else:
                self._combine(model, loss, own, RULES[self.control.rule])
        finally:
            set_flows(model, self.flows)
        for parameter in self.frozen:
            parameter.grad = None  # neither momentum nor weight decay moves it

    def _flows(self, moment: Moment) -> list[Flow]:
        if self.control.cut is None:
            return self.flows
        weights = self.control.cut.weights(self.stages, moment, self.tosses)
        return [
            flow if weight is None else replace(flow, shortcut_gradient=weight)
            for flow, weight in zip(self.flows, weights, strict=True)
        ]

    def _combine(self, model: nn.Module, loss: Tensor, flows: Sequence[Flow], rule: UpdateRule) -> None:
        parameters = [parameter for group in self.groups.values() for parameter in group]
        other = self._other_gradients(model, loss, flows, parameters)
        set_flows(model, flows)
        own = gradients(loss, parameters, retain_graph=False)
        for group in self.groups.values():
            assign(group, rule(flat(group, other), flat(group, own), self.noise))

    def _other_gradients(
        self, model: nn.Module, loss: Tensor, flows: Sequence[Flow], parameters: Sequence[nn.Parameter]
    ) -> Gradients:
        """What a rule takes beside the arm's own gradient: the true one; in a placebo that with permuted shortcuts."""
        placebo = self.permuted is not None
        set_flows(model, flows if placebo else [flow.exact for flow in self.flows])
        with switched(self.permuted, active=True) if placebo else switched(self.limit, active=False):
            return gradients(loss, parameters, retain_graph=True)


@contextmanager
def switched(switch: PermutedShortcuts | PathLimit | None, *, active: bool) -> Iterator[None]:
    """Turn a switch on or off for the backwards inside, and back."""
    if switch is not None:
        switch.active = active
    try:
        yield
    finally:
        if switch is not None:
            switch.active = not active


def frozen_parameters(model: nn.Module, share: float) -> list[nn.Parameter]:
    """The parameters of the first blocks, that share of all (rounded), and of what lies before them."""
    names, by_name = block_names(model), groups(model)
    count = round(share * len(names))
    if count == 0:
        return []
    last = list(by_name).index(names[count - 1])
    return [parameter for group in list(by_name.values())[: last + 1] for parameter in group]


# Update rules: an update made of two gradients of one block's parameters, the true one (in a placebo, that with
# permuted shortcuts) and that of the arm. Each takes both as vectors of float64, and a source of noise; the lengths of
# what it gives are exact to rounding.
def with_true_norm(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The arm's direction, as long as the true gradient; zeros where the arm's is zero."""
    return scaled_to(own, true.norm())


def with_own_norm(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The true direction, as long as the arm's gradient; zeros where the true one is zero."""
    return scaled_to(true, own.norm())


def noisy(true: Tensor, own: Tensor, noise: torch.Generator) -> Tensor:
    """The true gradient and isotropic noise, with the cosine to the true one and the length that the arm's has.

    cos(own, true) * true / |true| + sin * noise / |noise|, the noise orthogonal to the true gradient; times |own|.
    """
    drawn = torch.randn(own.shape, generator=noise, dtype=own.dtype).to(own.device)
    size = true.norm()
    if size == 0:
        return scaled_to(drawn, own.norm())
    direction = true / size
    for _ in range(2):  # twice: the first leaves rounding errors of the noise's own size
        drawn = drawn - (drawn @ direction) * direction
    cosine = (own / own.norm()) @ direction if own.any() else own.new_zeros(())
    sine = (1 - cosine**2).clamp(min=0).sqrt()
    return own.norm() * (cosine * direction + scaled_to(drawn, sine))


def scaled_to(vector: Tensor, length: Tensor) -> Tensor:
    """The vector's direction at that length; zeros stay zeros."""
    size = vector.norm()
    return vector * (length / size) if size > 0 else torch.zeros_like(vector)


RULES: dict[str, UpdateRule] = {
    "true-norm": with_true_norm,
    "own-norm": with_own_norm,
    "noise": noisy,
    "placebo": with_own_norm,
}
