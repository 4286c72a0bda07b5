"""Blocks inserted into a trained network, at random weights or as identities."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from experiments.engine.block_changes import changes_at_ends, some_images
from experiments.engine.cells import make_network, train_cell
from experiments.engine.computing import Computing
from experiments.engine.copying import open_branches
from experiments.engine.data import Batches, Dataset
from experiments.engine.grid import Cell, Outcome
from experiments.engine.training import Diverged, Training, evaluate, settle_statistics, train
from models import CifarResNet, ResidualBlock
from models.branches import Scalar


def insert_blocks(shallow: CifarResNet, deep: CifarResNet) -> list[str]:
    """Give `deep` the weights of `shallow`; its further blocks, at the end of each stage, keep their own.

    Returns the names of those inserted blocks. Raises ValueError where `deep` has no place for all of `shallow`.
    """
    unexpected = deep.load_state_dict(shallow.state_dict(), strict=False).unexpected_keys
    if unexpected or len(deep.blocks) <= len(shallow.blocks):
        raise ValueError(
            f"a network of {len(shallow.blocks)} blocks cannot be continued as one of {len(deep.blocks)}: give a "
            "deeper one"
        )
    own = {name for name, _ in shallow.named_modules()}
    return [name for name, module in deep.named_modules() if isinstance(module, ResidualBlock) and name not in own]


@torch.no_grad()
def make_identities(shallow: CifarResNet, deep: CifarResNet, inserted: list[str], images: Tensor) -> None:
    """Make the inserted blocks identities, so that `deep` in eval mode computes what `shallow` does.

    images: training images, from which a plain block's BatchNorm takes the mean and variance of its input.
    """
    x, outputs = shallow.eval().stem(images), {}
    for name in ("layer1", "layer2", "layer3"):
        outputs[name] = x = getattr(shallow, name)(x)
    for name in inserted:
        block = deep.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        if block.flow.shortcut:
            silence(block.branch)
        else:
            pass_on(block.branch, outputs[name.split(".")[0]])


def silence(branch: nn.Module) -> None:
    """Let a branch give zeros whatever its input: its last layer, a BatchNorm or a learned factor, is 0."""
    for parameter in list(branch.children())[-1].parameters():
        nn.init.zeros_(parameter)


def pass_on(branch: nn.Module, x: Tensor) -> None:
    """Let a branch give back x (N, C, H, W), not negative.

    Convolutions pass each channel on (Dirac). BatchNorm's running statistics are those of x, its weight and bias the
    deviation and mean that undo them: in eval mode nothing changes but by rounding. In train mode the first BatchNorm
    gives every batch the mean and deviation of x, which moves values by the difference of the batch's own to those
    (and ReLU cuts what falls below 0); the next ones then find nearly what they give.
    """
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            module.weight.copy_((variance + module.eps).sqrt())
            module.bias.copy_(mean)
        elif isinstance(module, Scalar):
            nn.init.ones_(module.alpha)


def insert_and_go_on(cell: Cell, dataset: Dataset, training: Training) -> Outcome:
    """Train a network of `shallow` layers, insert what `effect` says, and train for as long again.

    effect: none, identity or random, in the cell's settings beside shallow. Without insertion the shallow network
    itself goes on. Both trainings see the same batches.
    """
    kind, batches = cell.settings["effect"], Batches(dataset, torch.device(str(cell.settings["device"])))
    shallow = first_network(replace(cell, depth=int(str(cell.settings["shallow"]))), dataset)
    try:
        for _ in train(shallow, batches, training, seed=cell.seed, computing=Computing.of(cell.settings)):
            pass
    except Diverged as end:
        return Outcome(diverged_at=end.step)
    settle_statistics(shallow, batches)
    model, inserted = shallow, []
    if kind != "none":
        model = first_network(cell, dataset)
        inserted = insert_blocks(shallow, model)
    if kind == "identity":
        make_identities(shallow, model, inserted, some_images(batches))
    measure = partial(changes_at_ends, evaluate=evaluate, blocks=inserted)
    return train_cell(cell, dataset, training, model=model, measure=measure)


def first_network(cell: Cell, dataset: Dataset) -> CifarResNet:
    """The cell's network at its first weights."""
    model = make_network(cell, dataset)
    assert isinstance(model, CifarResNet)
    open_branches(model)
    return model
