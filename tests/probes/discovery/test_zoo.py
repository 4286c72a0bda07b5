"""The scored zoo: in other people's networks, the right number of junctions, and the right operands of each."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from probes import find_junctions, record
from tests.support.zoo import ZOO, ModuleValues, Specimen, Where


def counted(model: nn.Module, inputs: dict[str, Any]) -> tuple[int, int]:
    kinds = Counter(junction.shortcut for junction in find_junctions(model, **inputs))
    return kinds["identity"], kinds["projection"]


def places(specimen: Specimen, name: str) -> tuple[str, tuple[Where, Where]]:
    block, ordinal = re.fullmatch(r"([^#@]*)((?:#\d+)?)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    by_end = [place for end, place in specimen.addends.items() if end.isalpha() and name.endswith(end)]
    return block, by_end[0] if by_end else specimen.addends[ordinal]


@pytest.mark.parametrize("name", ZOO)
def test_the_right_number_of_junctions(name: str) -> None:
    specimen = ZOO[name]
    model, inputs = specimen.make(), specimen.inputs()
    for training in (True, False):
        assert counted(model.train(training), inputs) == (specimen.identities, specimen.projections), training


FREEZABLE = ("torchvision:resnet18", "torchvision:convnext_tiny", "timm:poolformer_s12", "hf:gpt2", "hf:whisper")


@pytest.mark.parametrize("name", FREEZABLE)
def test_freezing_a_model_hides_no_junction(name: str) -> None:
    """Also where a branch's only parameters are a normalisation's, and where the inputs are integers."""
    specimen = ZOO[name]
    model = specimen.make().requires_grad_(False)
    assert counted(model, specimen.inputs()) == (specimen.identities, specimen.projections)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", [name for name, specimen in ZOO.items() if specimen.addends])
def test_each_addend_is_the_value_that_the_authors_code_adds(name: str) -> None:
    specimen = ZOO[name]
    model = specimen.make()
    values, checked = ModuleValues(model), 0
    with record(model, keep=True) as recording:
        model(**specimen.inputs())
    for site in recording.junctions:
        block, wheres = places(specimen, site.name)
        if isinstance(wheres[0], tuple) and wheres[0][0].endswith(">"):  # a projection's module, where there is one
            projects = wheres[0][0].format(block) in values.kept
            assert site.match.kind == ("projection" if projects else "identity"), site.name
        for where, got in zip(wheres, (site.shortcut, site.branch), strict=True):
            wanted = values.at(where, block)
            if wanted is not None:
                assert torch.equal(got, wanted.view_as(got)), f"{site.name}: not the value at {where}"
                checked += 1
    assert checked >= len(recording.junctions)
