"""The scored zoo: in other people's networks, the right number of junctions, and the right operands of each."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes import find_junctions, record
from tests.zoo import ZOO, Specimen, Where


def tensors(value: Any) -> list[Tensor]:
    return [x for x in (value.values() if isinstance(value, dict) else value) if isinstance(x, Tensor)]


class Values:
    """What went into and came out of every module, copied while the model ran: told by hooks, not by autograd."""

    def __init__(self, model: nn.Module) -> None:
        self.kept: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self.keep_inputs(name), with_kwargs=True)
            module.register_forward_hook(self.keep_output(name))

    def keep_inputs(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*tensors(args), *tensors(kwargs)]
            for place, x in zip((f"<{name}", f"<{name}@shortcut"), given[:2], strict=False):
                self.kept.setdefault(place, []).append(x.detach().clone())

        return hook

    def keep_output(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for x in tensors([output] if isinstance(output, Tensor) else output)[:1]:
                self.kept.setdefault(f"{name}>", []).append(x.detach().clone())

        return hook

    def at(self, where: Where, block: str) -> Tensor | None:
        """The value at the first of these places that exists."""
        for place in (where,) if isinstance(where, str) else where or ():
            place, call = (place.removesuffix("@1"), 1) if place.endswith("@1") else (place, 0)
            if place.format(block) in self.kept:
                return self.kept[place.format(block)][call]
        assert where is None, f"no module at {where} of {block!r}: {sorted(self.kept)[:20]}"
        return None


def counted(model: nn.Module, inputs: dict[str, Any]) -> tuple[int, int]:
    kinds = Counter(junction.shortcut for junction in find_junctions(model, **inputs))
    return kinds["identity"], kinds["projection"]


def places(specimen: Specimen, name: str) -> tuple[str, tuple[Where, Where]]:
    block, ordinal = re.fullmatch(r"([^#@]*)((?:#\d+)?)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    by_end = [place for end, place in specimen.addends.items() if end.isalpha() and name.endswith(end)]
    return block, by_end[0] if by_end else specimen.addends[ordinal]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ZOO)
def test_the_right_number_of_junctions(name: str, training: bool) -> None:
    specimen = ZOO[name]
    model = specimen.make().train(training)
    assert counted(model, specimen.inputs()) == (specimen.identities, specimen.projections)


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
    values, checked = Values(model), 0
    with record(model, keep=True) as recording:
        model(**specimen.inputs())
    for site in recording.junctions:
        block, wheres = places(specimen, site.name)
        if isinstance(wheres[0], tuple) and wheres[0][0].endswith(">"):  # a projection's module, where there is one
            projects = wheres[0][0].format(block) in values.kept
            assert site.verdict.kind == ("projection" if projects else "identity"), site.name
        for where, got in zip(wheres, (site.shortcut, site.branch), strict=True):
            wanted = values.at(where, block)
            if wanted is not None:
                assert torch.equal(got, wanted.view_as(got)), f"{site.name}: not the value at {where}"
                checked += 1
    assert checked >= len(recording.junctions)
