"""What is measured from a recording, on other people's networks: values, modules and sums against plain hooks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from probes import contributions, gradient_norms, iterative_inference, record, stream_statistics
from probes.discovery.origins import tensors
from tests.support.networks import values
from tests.support.zoo import ZOO, ModuleValues

LARGE = ("torchvision:", "timm:", "hf:detr")
SMALL = ("torchvision:vit", "timm:vit_tiny_patch16_224")
NETWORKS = [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(LARGE) and name not in SMALL else name
    for name, specimen in ZOO.items()
    if specimen.identities + specimen.projections
]
CARRIES_THE_SUM_ON = (
    "torchvision:vit", "timm:vit_tiny_patch16_224", "timm:mixer_s16_224", "hf:gpt2", "hf:vit", "hf:t5_encoder",
    "hf:llama", "hf:mixtral", "hf:cohere", "hf:mamba", "hf:gptj", "hf:opt",
)  # fmt: skip


def loss_of(output: Any) -> Tensor:
    found = [x.float().square().mean() for x in tensors(output) if x.is_floating_point() and x.requires_grad]
    return torch.stack(found).sum()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_measurement_of_a_recording(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.make()
    kept = ModuleValues(model)
    with record(model, keep=True) as recording:
        loss_of(model(**specimen.inputs())).backward()
    sites, table = recording.junctions, contributions(recording)
    if name in CARRIES_THE_SUM_ON:
        assert values(table, "error") == [0] * len(sites)
    assert all(map(math.isfinite, values(table, "factor")))
    for site in sites:
        if site.module is not None:  # in another order, where the output was transposed
            outputs = [x for x in kept.kept[f"{site.module}>"] if x.numel() == site.branch.numel()]
            wanted = site.branch.flatten().sort().values
            assert any(torch.equal(x.flatten().sort().values, wanted) for x in outputs), site.name
    sizes = [math.nan if site.fork is None else site.fork.double().square().mean().sqrt().item() for site in sites]
    assert values(stream_statistics(recording), "rms") == pytest.approx(sizes, rel=1e-12)
    assert all(-1.000001 < cosine < 1.000001 for cosine in iterative_inference(recording)["value"].dropna())
    whole = gradient_norms(recording)
    by_example = gradient_norms(recording, per="example")
    squares = by_example[by_example["quantity"] == "total"].assign(value=lambda t: t["value"] ** 2)
    sums = squares.groupby("depth")["value"].sum() ** 0.5
    assert sums.tolist() == pytest.approx(values(whole, "total"), rel=1e-5)  # those are taken in float32
