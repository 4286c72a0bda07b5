"""Lesions against networks edited by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models import GRADIENT_ONLY, PLAIN, RESIDUAL, STOP_GRADIENT, cifar_resnet
from probes import Junction, find_junctions, lesion, permute
from tests.support.networks import FLOAT64, Apply, chain, dense, images, left_as_it_was, one, rows, scalars
from tests.support.zoo import ZOO


@pytest.mark.parametrize(("gone", "wanted"), [([], 72), ([0], 24), ([1], 18), ([2], 12), ([0, 2], 4), ([0, 1, 2], 1)])
def test_on_paper(gone: list[int], wanted: float) -> None:
    model = scalars()
    junctions = find_junctions(model, one())
    with left_as_it_was(model), torch.no_grad(), lesion(model, delete=[junctions[i] for i in gone]):
        assert model(one()).item() == wanted
    assert model(one()).item() == 72


SUMS = {
    "f + x": lambda m, x: m.f(x) + x,
    "in place": lambda m, x: m.f(x).add_(x),
    "in place, not assigned": lambda m, x: (lambda y: (y.add_(m.f(x)), y)[1])(x.clone()),
    "in place into the branch, not assigned": lambda m, x: (lambda y: (y.add_(x), y)[1])(m.f(x)),
    "alpha": lambda m, x: torch.add(x, m.f(x), alpha=0.5),
    "difference": lambda m, x: x - m.f(x),
    "out": lambda m, x: torch.add(m.f(x), x, out=torch.empty_like(x)),
    "two branches": lambda m, x: x + m.f(x) + m.g(x),
    "relu in place": lambda m, x: torch.relu_(m.f(x) + torch.relu(x)) * 0 + x,
}


@pytest.mark.parametrize("body", SUMS.values(), ids=SUMS)
def test_without_its_branch_a_sum_is_the_shortcut(body: object) -> None:
    model = Apply(body, f=nn.Linear(3, 3), g=nn.Linear(3, 3))  # type: ignore[arg-type]
    x = torch.randn(2, 3)
    junctions = find_junctions(model, x)
    assert len(junctions) == 1
    kept = x.clone()
    with torch.no_grad(), lesion(model, delete=junctions):
        assert torch.equal(model(x), x)  # type: ignore[arg-type]
    assert torch.equal(x, kept)


@pytest.mark.parametrize("flow", [RESIDUAL, STOP_GRADIENT], ids=["residual", "stop-gradient"])
def test_our_blocks_without_their_branches(flow: object) -> None:
    """Silencing the branch's last normalisation by hand does the same."""
    model = cifar_resnet(14, width=4, flow=flow).double().eval()  # type: ignore[arg-type]
    x = images()
    junctions = find_junctions(model, x)
    for index in (1, 2, 5):
        edited = copy.deepcopy(model)
        last = [m for m in edited.get_submodule(junctions[index].name).modules() if isinstance(m, nn.BatchNorm2d)][-1]
        last.weight.data.zero_()
        last.bias.data.zero_()
        with lesion(model, delete=[junctions[index]]):
            assert torch.equal(model(x), edited(x))


def test_gradients_of_a_lesioned_network() -> None:
    """A deleted branch learns nothing; the rest learns as if it were not there."""
    model, x = chain(3), torch.randn(2, 3, dtype=FLOAT64)
    junctions = find_junctions(model, x)
    with lesion(model, delete=junctions[1:2]):
        model(x).square().sum().backward()
    shorter = nn.Sequential(copy.deepcopy(model[0]), copy.deepcopy(model[2]))
    shorter.zero_grad()
    shorter(x).square().sum().backward()
    kept = [p for i in (0, 2) for p in model[i].parameters()]
    for got, wanted in zip(kept, shorter.parameters(), strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert torch.equal(got.grad, wanted.grad)
    assert all(p.grad is None for p in model[1].parameters())


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "hf:gpt2"])
def test_foreign_networks(name: str) -> None:
    """With every branch gone, nothing of the blocks but shortcuts is left: their weights do not matter."""
    model, inputs = ZOO[name].make().eval(), ZOO[name].inputs()
    junctions = find_junctions(model, **inputs)
    edited = copy.deepcopy(model)
    for parameter in (p for n, p in edited.named_parameters() if any(k in n for k in ("conv2", "mlp", "attn"))):
        parameter.data.normal_()
    with torch.no_grad(), lesion(model, delete=junctions), lesion(edited, delete=junctions):
        outputs = [network(**inputs) for network in (model, edited)]
    with torch.no_grad():
        outputs.append(model(**inputs))
    first, second, whole = (out if isinstance(out, Tensor) else out.last_hidden_state for out in outputs)
    assert torch.equal(first, second)
    assert not torch.equal(first, whole)


@pytest.mark.parametrize("flow", [PLAIN, GRADIENT_ONLY], ids=["plain", "gradient-only"])
def test_plain_blocks_are_skipped(flow: object) -> None:
    model = cifar_resnet(14, width=4, flow=flow).double().eval()  # type: ignore[arg-type]
    x, block = images(), "layer1.1"
    assert block in dict(model.named_modules())
    edited = copy.deepcopy(model)
    edited.set_submodule(block, nn.Identity())
    with left_as_it_was(model), lesion(model, skip=[model.get_submodule(block)]):
        assert torch.equal(model(x), edited(x))


def test_a_block_that_changes_the_shape_cannot_be_skipped() -> None:
    model = cifar_resnet(8, width=4, flow=PLAIN).double()
    with (
        pytest.raises(ValueError, match=r"'layer2.0' turns \(4, 4, 8, 8\) into \(4, 8, 4, 4\): it cannot be skipped"),
        left_as_it_was(model),
        lesion(model, skip=[model.get_submodule("layer2.0")]),
        torch.no_grad(),
    ):
        model.eval()(images())


def test_other_strangers() -> None:
    model = scalars()
    with pytest.raises(ValueError, match="skip takes modules of the model"), lesion(model, skip=[nn.ReLU()]):
        pass
    junctions = find_junctions(nn.Sequential(scalars(2.0)), one())
    with pytest.raises(ValueError, match=r"no add is called 0\.0 in this forward"), lesion(model, delete=junctions):
        model(one())


# Other orders.


def test_permuted_blocks() -> None:
    model = scalars()
    weights = [p.clone() for p in model.parameters()]
    x = torch.randn(2, 1, dtype=FLOAT64)
    bent = nn.Sequential(*(nn.Sequential(block, nn.Tanh()) for block in scalars()))
    by_hand = nn.Sequential(bent[1], bent[0], bent[2])
    wanted = by_hand(x)
    with permute(bent, {"0": "1", "1": "0"}):
        assert torch.equal(bent(x), wanted)
    with permute(model, {"0": "1", "1": "2", "2": "0"}):
        assert [p.item() for p in model.parameters()] == [3, 5, 2]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_buffers_move_along_and_all_is_put_back_after_an_error() -> None:
    model = cifar_resnet(20, width=4).double()
    model(images())
    before = copy.deepcopy(model.state_dict())
    swap = {"layer1.1": "layer1.2", "layer1.2": "layer1.1"}
    with permute(model, swap):
        for name, value in model.state_dict().items():
            if name.startswith("layer1.1"):
                assert torch.equal(value, before[name.replace("layer1.1", "layer1.2")])
    with pytest.raises(RuntimeError), permute(model, swap):
        model(torch.zeros(1))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"layer1.1": "layer1.2"}, "the same blocks on both sides"),
        ({"layer1.1": "nowhere", "nowhere": "layer1.1"}, "the model has no modules nowhere"),
        ({"layer1.1": "layer2.1", "layer2.1": "layer1.1"}, "differ in shape, so that they cannot change places"),
    ],
)
def test_orders_that_cannot_be(order: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message), permute(cifar_resnet(20, width=4), order):
        pass


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = dense(), dense()

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.randn_like(x) if self.training else x
        x = x + self.f(x).tanh()
        return x + self.g(x).tanh()


def test_names_that_mean_another_add_in_another_mode() -> None:
    model = nn.Sequential(Noisy()).train()
    junctions = find_junctions(model, rows())
    model.eval()
    with (
        pytest.raises(ValueError, match="'0' adds 2 times in this forward, and 3 times where"),
        lesion(model, delete=junctions[:1]),
    ):
        model(rows())


def test_a_skipped_block_that_overwrites_its_input() -> None:
    inner = nn.Sequential(nn.ReLU(inplace=True), dense())
    model, x = nn.Sequential(dense(), inner, dense()), rows()
    wanted = model[2](model[0](x))
    with lesion(model, skip=[inner]):
        assert torch.equal(model(x), wanted)


def test_junctions_of_one_s_own_making_and_other_strangers() -> None:
    model = chain(2, 4)
    own = [Junction("0", 0, "identity")]
    with pytest.raises(ValueError, match="give junctions as find_junctions"), lesion(model, delete=own):
        pass
    (first, *_) = find_junctions(model, rows())
    with pytest.raises(ValueError, match="takes a list of junctions"), lesion(model, delete=first):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="the same blocks on both sides"), permute(model, ["0"]):  # type: ignore[arg-type]
        pass
