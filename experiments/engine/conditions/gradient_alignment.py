"""How parallel two gradients are, block by block: an update and the true one, that of short paths and of long ones."""

import copy

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.engine.conditions.block_gradients import Gradients, block_names, flat, gradients, groups
from experiments.engine.conditions.controls import Control
from experiments.engine.running.run import Tables
from experiments.engine.training.data import Batches
from experiments.engine.training.loop import Loss, Moment, context_of, cross_entropy
from experiments.engine.training.train_run import probing_batch
from models.feedback import FeedbackConv2d
from models.residual_blocks import set_exact_flows
from probes import gradient_alignment, path_gradients, record
from probes.measurements.gradient_alignment import TOTAL
from probes.norms import norms_and_cosine
from probes.tables import table

NETWORK = "network"  # the block that is all of it


def alignment(
    model: nn.Module,
    control: Control,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    moment: Moment,
    loss: Loss = cross_entropy,
) -> pd.DataFrame:
    """Cosine and norm ratio of a control's update, before the optimiser, with the true gradient of the loss at the same
    weights, for each residual block's parameters: block, depth, quantity ("cosine", "norm ratio"), value. Likewise for
    all parameters, as block "network" without a depth, there with the "true norm" (L2, of the mean over the batch).

    A cosine with zeros, and a ratio to zero, are nan. The network, its mode and the random state stay as they are.
    Coins and noise are those of the first step.
    """
    gpu = [images.device] if images.is_cuda else []  # with none named, each worker on a CPU would set up all GPUs
    with torch.random.fork_rng(gpu):
        true = true_gradients(model, images, labels, loss=loss)
        made = updates(model, control, images, labels, seed, moment, loss=loss)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_name, depths = groups(model), {name: depth for depth, name in enumerate(block_names(model))}
    blocks = {block: [names[parameter] for parameter in by_name[block]] for block in depths}
    found = gradient_alignment(
        *({names[parameter]: gradient for parameter, gradient in of.items()} for of in (true, made)), blocks=blocks
    )
    rows: list[dict[str, object]] = [
        {
            "block": NETWORK if block == TOTAL else block,
            "depth": depths.get(block),
            "quantity": quantity.replace("_", " "),
            "value": value,
        }
        for block, quantity, value in found.itertuples(index=False)
    ]
    whole = flat(list(model.parameters()), true)
    return table([*rows, {"block": NETWORK, "quantity": "true norm", "value": whole.norm().item()}])


def true_gradients(model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = cross_entropy) -> Gradients:
    """The gradient of what the network computes, by the model's own parameters, whatever its flows and feedback are."""
    twin = copy.deepcopy(model)
    set_exact_flows(twin)
    for module in twin.modules():
        if isinstance(module, FeedbackConv2d):
            module.feedback = module.weight.detach()
    found = gradients(loss_of(twin, images, labels, loss=loss), list(twin.parameters()), retain_graph=False)
    return dict(zip(model.parameters(), found.values(), strict=True))


def updates(
    model: nn.Module,
    control: Control,
    images: Tensor,
    labels: Tensor,
    seed: int,
    moment: Moment,
    *,
    loss: Loss = cross_entropy,
) -> Gradients:
    """The gradient that a control writes into `.grad`, by the model's own parameters; zeros where it writes none.

    The network has the control's random feedback already, if there is any: it is not drawn again.
    """
    twin = copy.deepcopy(model)
    twin.zero_grad()
    backward = control.without_feedback().prepare(twin, seed=seed)
    with context_of(backward, twin):
        backward(twin, loss_of(twin, images, labels, loss=loss), moment)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in twin.parameters()]
    return dict(zip(model.parameters(), found, strict=True))


def path_part_cosines(model: nn.Module, images: Tensor, labels: Tensor, *, at_most: int = 3) -> pd.DataFrame:
    """The cosine of two parts of the gradient that the network's backward computes of cross-entropy, that of paths of
    at most so many branches and that of all longer ones, for each residual block's parameters: block, depth, quantity
    ("cosine"), value.

    nan where a part is zero: the last blocks have no longer paths. The network, its mode and the random state stay as
    they are. It costs about L / 2 backwards for L blocks (`probes.path_gradients`).
    """
    gpu = [images.device] if images.is_cuda else []
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(gpu), record(twin) as recording:
        loss_of(twin, images, labels).backward(retain_graph=True)
    lengths = path_gradients(recording, of="parameters")
    names = {parameter: name for name, parameter in twin.named_parameters()}
    by_name, rows = groups(twin), []
    for depth, name in enumerate(block_names(twin)):
        of_block = [(parameter, lengths[names[parameter]]) for parameter in by_name[name]]
        short, long = (
            flat(by_name[name], {parameter: of_length[part].sum(0) for parameter, of_length in of_block})
            for part in (slice(at_most + 1), slice(at_most + 1, None))
        )
        cosine = norms_and_cosine(short, long)[2].item()
        rows.append({"block": name, "depth": depth, "quantity": "cosine", "value": cosine})
    return table(rows)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = cross_entropy) -> Tensor:
    """Of a batch, with the same draws (of dropout, say) in every call."""
    torch.manual_seed(0)
    return loss(model(images), images, labels)


def measure_alignment(
    model: nn.Module, batches: Batches, epoch: int, last: bool, *, control: Control, seed: int, throughout: bool = False
) -> Tables:
    """`alignment` before the first step and in the end (throughout: after every epoch), on one fixed batch, in train
    mode, under the control of the epoch that has ended."""
    if epoch and not last and not throughout:
        return {}
    copied, images, labels = probing_batch(model, batches)
    moment = Moment(step=0, epoch=max(epoch - 1, 0))
    return {"alignment": alignment(copied, control, images, labels, seed=seed, moment=moment)}
