"""Inserted blocks: identities keep the function, and how far a block is from one, on paper and against a twin."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.engine.block_changes import block_changes, some_images
from experiments.engine.copying import open_branches
from experiments.engine.data import Batches, Data, load
from experiments.engine.insertion import insert_blocks, make_identities
from experiments.engine.training import Training, evaluate, settle_statistics, train
from models import ARMS, PLAIN, RESIDUAL, CifarResNet, Flow, ResidualBlock, cifar_resnet

NAMES = ["layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(load(Data()), torch.device("cpu"))


def network(depth: int, flow: Flow, block: str = "basic", seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    model = cifar_resnet(depth, flow=flow, block=block, width=4, in_channels=1)  # type: ignore[arg-type]
    open_branches(model)
    return model


def trained(batches: Batches, flow: Flow, block: str = "basic") -> CifarResNet:
    model = network(8, flow, block)
    list(train(model, batches, Training(epochs=2), seed=0))
    settle_statistics(model, batches)
    return model


def grown(shallow: CifarResNet, batches: Batches, flow: Flow, block: str = "basic") -> CifarResNet:
    deep = network(20, flow, block, seed=1)
    assert insert_blocks(shallow, deep) == NAMES
    make_identities(shallow, deep, NAMES, some_images(batches))
    return deep


@torch.no_grad()
def outputs(model: nn.Module, batches: Batches) -> Tensor:
    return model.eval()(batches.get("test", slice(None))[0])


@pytest.mark.parametrize("block", ["basic", "skipinit"])
@pytest.mark.parametrize("arm", list(ARMS))
def test_identities_keep_the_function(batches: Batches, arm: str, block: str) -> None:
    """Exactly where the residual is 0, else up to rounding: BatchNorm divides by what it then multiplies with."""
    flow = ARMS[arm]
    shallow = trained(batches, flow, block)
    wanted, got = outputs(shallow, batches), outputs(grown(shallow, batches, flow, block), batches)
    if flow.shortcut or block == "skipinit":
        assert torch.equal(got, wanted)
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std(0).min() > 0.001  # logits that tell images apart


def test_an_inserted_identity_lets_no_gradient_down_in_a_stop_gradient_network_alone(batches: Batches) -> None:
    images, labels = batches.get("train", slice(0, 64))
    for arm in ("residual", "stop-gradient", "plain"):
        deep = grown(trained(batches, ARMS[arm]), batches, ARMS[arm]).train()
        F.cross_entropy(deep(images), labels).backward()
        below = [p.grad for part in (deep.stem, deep.layer1, deep.layer3[0]) for p in part.parameters()]
        assert all((g == 0).all() for g in below if g is not None) == (arm == "stop-gradient")


def test_blocks_at_random_weights_change_the_function(batches: Batches) -> None:
    for flow in (RESIDUAL, PLAIN):
        shallow, deep = trained(batches, flow), network(20, flow, seed=1)
        insert_blocks(shallow, deep)
        settle_statistics(deep, batches)
        wanted, got = outputs(shallow, batches), outputs(deep, batches)
        assert (got - wanted).norm() > 0.3 * wanted.norm()


def test_identities_outlast_new_statistics(batches: Batches) -> None:
    """Statistics taken anew, in train mode, go through blocks that see each batch's own mean and deviation instead of
    those of all images: batches of 128 images, 16 to 64 places each, differ from them by some percent."""
    shallow = trained(batches, PLAIN)
    deep = grown(shallow, batches, PLAIN)
    settle_statistics(deep, batches)
    wanted, got = outputs(shallow, batches), outputs(deep, batches)
    assert 0 < (got - wanted).norm() < 0.1 * wanted.norm()
    changes = block_changes(deep, some_images(batches, 512))
    assert (changes[changes["block"].isin(NAMES)]["value"] < 0.05).all()
    assert abs(evaluate(deep, batches, "test")["accuracy"] - evaluate(shallow, batches, "test")["accuracy"]) < 0.02


def test_the_shallow_network_stays_as_it_is_and_its_weights_are_all_there(batches: Batches) -> None:
    shallow = trained(batches, PLAIN)
    before = {name: value.clone() for name, value in shallow.state_dict().items()}
    deep = grown(shallow, batches, PLAIN)
    for name, value in before.items():
        assert torch.equal(shallow.state_dict()[name], value)
        assert torch.equal(deep.state_dict()[name], value)


def test_a_channel_that_is_always_zero_stays_zero(batches: Batches) -> None:
    shallow = trained(batches, PLAIN)
    with torch.no_grad():
        shallow.blocks[0].branch[-1].weight[0], shallow.blocks[0].branch[-1].bias[0] = 0, -1  # pyright: ignore
    deep = grown(shallow, batches, PLAIN)
    torch.testing.assert_close(outputs(deep, batches), outputs(shallow, batches), rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_deeper_is_refused() -> None:
    with pytest.raises(ValueError, match="a network of 6 blocks cannot be continued as one of 3: give a deeper one"):
        insert_blocks(network(14, PLAIN), network(8, PLAIN))
    with pytest.raises(ValueError, match="of 3 blocks cannot be continued as one of 3"):
        insert_blocks(network(8, PLAIN), network(8, PLAIN))


def scalar_block(weight: float, flow: Flow) -> ResidualBlock:
    branch = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(branch.weight, weight)
    return ResidualBlock(branch, flow=flow)


@pytest.mark.parametrize(
    ("weight", "flow", "wanted"),
    [
        (0.5, RESIDUAL, {"ratio": 0.5, "distance": 0.5}),
        (-2.0, RESIDUAL, {"ratio": 2.0, "distance": 1.0}),  # x - 2x is cut to 0
        (0.0, RESIDUAL, {"ratio": 0.0, "distance": 0.0}),
        (0.5, PLAIN, {"distance": 0.5}),
        (1.0, PLAIN, {"distance": 0.0}),
        (-2.0, PLAIN, {"distance": 1.0}),
    ],
)
def test_changes_on_paper(weight: float, flow: Flow, wanted: dict[str, float]) -> None:
    found = block_changes(nn.Sequential(scalar_block(weight, flow)), torch.rand(2, 1, 3, 3))
    assert dict(zip(found["quantity"], found["value"], strict=True)) == pytest.approx(wanted)
    assert set(found["block"]) == {"0"}


def test_changes_against_a_slow_twin(batches: Batches) -> None:
    """Of every block whose shape stays, each by its own; blocks that change the shape have no distance."""
    model = network(14, RESIDUAL)
    settle_statistics(model, batches)
    images = some_images(batches, 64)
    before = [buffer.clone() for buffer in model.buffers()]
    found = block_changes(model.train(), images).set_index(["block", "quantity"])["value"]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))
    model.eval()
    with torch.no_grad():
        x = model.stem(images)
        for name, block in model.named_modules():
            if isinstance(block, ResidualBlock):
                if not name.endswith("0") or name == "layer1.0":
                    assert found[name, "ratio"] == pytest.approx((block.branch(x).norm() / x.norm()).item(), rel=1e-5)
                    assert found[name, "distance"] == pytest.approx(((block(x) - x).norm() / x.norm()).item(), rel=1e-5)
                x = block(x)
    assert set(found.index.get_level_values("block")) == {"layer1.0", "layer1.1", "layer2.1", "layer3.1"}
