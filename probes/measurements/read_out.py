"""What does the head say of the stream after every block?"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..discovery.junctions import gpus_of
from ..recording import Recording
from ..sites import JunctionSite
from ..tables import table

POOLING: dict[int, Callable[..., Tensor]] = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}  # by dimensions
Head = Callable[[Tensor], Tensor]


def read_out(recording: Recording, head: Head | Mapping[str, Head], labels: Tensor | None = None) -> pd.DataFrame:
    r"""The model's head, applied to the stream after every block (nostalgebraist 2020, "logit lens").

    What the head is given is the junction's sum, behind the activation that the module which adds applies to it, if
    there is one (a post-activation block's ReLU). A head that is a single ``nn.Linear`` reads images (N, C, H, W)
    behind global average pooling, as a classifier does. So the read-out after the last block is the model's own output,
    to the bit, if the head is all of the model that follows it: a transformer's final normalisation belongs to it.

    Args:
        recording: Of a forward under ``record(model, keep=True)``; no backward is needed.
        head: What follows the last block: a module or a function, from the stream ``(N, C, H, W)``, ``(N, T, D)`` or
            ``(N, D)`` to logits ``(N, K)`` or ``(N, T, K)``. Or a mapping from blocks' names to one head each, for
            networks whose stages differ in width: other blocks are left out. It runs without gradients, in the mode
            that it is in, with the random state, and the buffers of the model and of a head that is a module, put back
            afterwards.
        labels: Classes ``(N,)`` or ``(N, T)``; -100 is left out. For a language model those of the next tokens; a head
            may cut the last position: ``lambda h: model.lm_head(model.norm(h))[:, :-1]`` with ``tokens[:, 1:]``.

    Returns:
        Columns ``block``, ``depth``, ``quantity``, ``value``, with the quantities

        - ``loss``: mean cross-entropy with the labels, in nats; ``accuracy``: the share whose largest logit is the
          label's (both only with labels);
        - ``entropy``: of the predicted distribution, in nats, averaged over examples and positions;
        - ``divergence``: Kullback and Leibler's, of the last block's distribution from this one,
          Σ p_last log(p_last / p), in nats, averaged likewise; ``agreement``: the share whose largest logit is the last
          block's (both of the last of the blocks that are read).

    Raises:
        ValueError: There is no junction, no tensor was kept, the head does not fit the stream or gives no logits, a
            mapping names an unknown block or is empty, or the labels do not fit.
        TypeError: ``head`` cannot be called, or gives no tensor.

    Example::

        with record(model, keep=True) as recording:
            model(images)
        read_out(recording, {"layer3.0": model.classifier, "layer3.1": model.classifier}, labels)
    """
    chosen = _heads(recording, head)
    with torch.no_grad(), _kept(recording, head):
        logits = {site: _apply(of_block, site) for site, of_block in chosen}
        *_, last = logits.values()
        rows = [
            {"block": site.name, "depth": site.depth, "quantity": name, "value": value}
            for site, said in logits.items()
            for name, value in _quantities(said, last, labels, site.name).items()
        ]
    return table(rows)


def _heads(recording: Recording, head: Head | Mapping[str, Head]) -> list[tuple[JunctionSite, Head]]:
    """The junctions that are read, and the head of each."""
    sites = recording.kept_junctions("read_out")
    if not isinstance(head, Mapping):
        found = [(site, head) for site in sites]
    else:
        names = [site.name for site in sites]
        unknown = [name for name in head if name not in names]
        if unknown or not head:
            raise ValueError(
                f"read_out: head names {unknown or 'no block'}: give a head for some of {', '.join(names[:8])}, ..."
            )
        found = [(site, head[site.name]) for site in sites if site.name in head]
    for _, of_block in found:
        if not callable(of_block):
            raise TypeError(f"read_out: head is a {type(of_block).__name__}: give a module or a function of the stream")
    return found


@contextmanager
def _kept(recording: Recording, head: Head | Mapping[str, Head]) -> Iterator[None]:
    """Put the random state, and the buffers of the model and of heads that are modules, back in the end."""
    heads = head.values() if isinstance(head, Mapping) else [head]
    buffers = {id(x): x for x in recording.buffers}
    buffers |= {id(x): x for h in heads if isinstance(h, nn.Module) for x in h.buffers()}
    before = [(x, x.clone()) for x in buffers.values()]
    try:
        with torch.random.fork_rng(gpus_of([site.sum for site in recording.junctions])):
            yield
    finally:
        for x, value in before:
            if not torch.equal(x, value):
                x.copy_(value)


def _apply(head: Head, site: JunctionSite) -> Tensor:
    stream = site.sum if site.output is None else site.output
    try:
        if isinstance(head, nn.Linear) and stream.dim() in POOLING:
            stream = POOLING[stream.dim()](stream, 1).flatten(1)
        logits = head(stream)
    except Exception as error:
        raise ValueError(
            f"read_out: the head does not fit the stream after {site.name!r}, {tuple(stream.shape)} ({error}): give a "
            "function that takes it there (pool, normalise, project), or heads of the blocks that fit alone, "
            f"{{{site.name!r}: head, ...}}"
        ) from error
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"read_out: the head gives a {type(logits).__name__} after {site.name!r}: give one that gives logits"
        )
    if logits.dim() < 2 or not logits.is_floating_point():
        raise ValueError(
            f"read_out: the head gives {tuple(logits.shape)} of {logits.dtype} after {site.name!r}: give one that "
            "gives logits (N, K) or (N, T, K)"
        )
    return logits


def _quantities(logits: Tensor, last: Tensor, labels: Tensor | None, block: str) -> dict[str, float]:
    found: dict[str, float] = {}
    if labels is not None:
        if labels.shape != logits.shape[:-1] or labels.is_floating_point():
            raise ValueError(
                f"read_out: labels are {tuple(labels.shape)} of {labels.dtype}, and the logits after {block!r} are "
                f"{tuple(logits.shape)}: give whole numbers {tuple(logits.shape[:-1])}, -100 where there is no label"
            )
        flat = logits.flatten(0, -2)
        wanted = class_labels(labels, logits.shape[-1], "read_out: labels").to(logits.device).flatten()
        hit = (flat.argmax(-1) == wanted)[wanted != -100]
        found = {"loss": F.cross_entropy(flat, wanted).item(), "accuracy": hit.double().mean().item()}
    if logits.shape != last.shape:
        raise ValueError(
            f"read_out: the head gives {tuple(logits.shape)} after {block!r}, and {tuple(last.shape)} after the last "
            "block: give heads whose logits are of the same classes"
        )
    said, meant = (F.log_softmax(x.double(), -1) for x in (logits, last))
    differences = torch.where(meant.exp() == 0, 0.0, meant.exp() * (meant - said))  # 0 log 0 is 0
    return found | {
        "entropy": -torch.xlogy(said.exp(), said.exp()).sum(-1).mean().item(),
        "divergence": differences.sum(-1).mean().item(),
        "agreement": (logits.argmax(-1) == last.argmax(-1)).double().mean().item(),
    }


def class_labels(labels: Tensor, classes: int, name: str) -> Tensor:
    """Labels of any type of whole numbers as cross-entropy takes them; raises ValueError for what is no class."""
    labels = labels.long()
    outside = labels[(labels != -100) & ((labels < 0) | (labels >= classes))]
    if len(outside):
        raise ValueError(f"{name} hold {outside[0]}, and there are {classes} classes: give 0 to {classes - 1}")
    return labels
