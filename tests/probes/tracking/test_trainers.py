"""One training in a plain loop, in accelerate's, in Hugging Face's Trainer and in Lightning's: one table.

The network, its first weights, the batches and the optimizer are the same; what differs is who writes the loop.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, optimizer  # pyright: ignore[reportAttributeAccessIssue]
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, Dataset

from probes import track
from tests.support.networks import Residual, perceptron

STEPS, MICRO, SIZE, RATE = 5, 2, 4, 0.1
Train = Callable[[nn.Module, AbstractContextManager[None], Path], None]


class Network(nn.Module):
    """Gives its own loss, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (Residual(perceptron(3, dtype=torch.float32)) for _ in range(3))
        self.blocks = nn.Sequential(*blocks, nn.Linear(3, 4))

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.blocks(inputs)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(len(self), 3, generator=generator)
        self.labels = torch.randint(4, (len(self),), generator=generator)

    def __len__(self) -> int:
        return STEPS * MICRO * SIZE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Examples(), batch_size=SIZE)


def in_a_plain_loop(network: nn.Module, context: AbstractContextManager[None], folder: Path) -> None:
    opt = SGD(network.parameters(), lr=RATE, momentum=0.9)
    with context:
        for index, batch in enumerate(loader()):
            (network(**batch)["loss"] / MICRO).backward()
            if index % MICRO == MICRO - 1:
                nn.utils.clip_grad_norm_(network.parameters(), 0.1)
                opt.step()
                opt.zero_grad()


def in_accelerate_s_loop(
    network: nn.Module, context: AbstractContextManager[None], folder: Path, **options: Any
) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    state: Any = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)  # of other tests' accelerators, which may differ
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=MICRO, **options)
    prepared = accelerator.prepare(network, SGD(network.parameters(), lr=RATE, momentum=0.9), loader())
    try:
        with context:
            accumulate(accelerator, *prepared)
    finally:
        state._reset_state(reset_partial_state=True)


def accumulate(accelerator: Any, network: nn.Module, opt: Any, batches: Any) -> None:
    for batch in batches:
        with accelerator.accumulate(network):
            accelerator.backward(network(**batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 0.1)
            opt.step()
            opt.zero_grad()


def in_hugging_face_s_trainer(network: nn.Module, context: AbstractContextManager[None], folder: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return torch.utils.data.SequentialSampler(Examples())

    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=MICRO,
        max_steps=STEPS,
        max_grad_norm=0.1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        eval_strategy="steps",  # evaluations lie inside of recorded steps
        eval_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    opt = SGD(network.parameters(), lr=RATE, momentum=0.9)
    examples = Examples()
    trainer = InOrder(network, settings, train_dataset=examples, eval_dataset=examples, optimizers=(opt, None))  # pyright: ignore[reportArgumentType]
    with context:
        trainer.train()


def in_lightning_s_trainer(network: nn.Module, context: AbstractContextManager[None], folder: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, _: int) -> Tensor:
            return self.network(**batch)["loss"]

        def validation_step(self, batch: Any, _: int) -> None:
            self.network(**batch)

        def configure_optimizers(self) -> Any:
            return SGD(self.network.parameters(), lr=RATE, momentum=0.9)

    trainer = lightning.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=MICRO,
        gradient_clip_val=0.1,
        val_check_interval=3,
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with context:
        trainer.fit(Module(), loader(), loader())


TRAINERS: dict[str, Train] = {
    "plain": in_a_plain_loop,
    "accelerate": in_accelerate_s_loop,
    "transformers": in_hugging_face_s_trainer,
    "lightning": in_lightning_s_trainer,
}


@pytest.fixture
def their_warnings() -> Iterator[None]:
    """Those of the trainers are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def by_the_definition(network: Network) -> dict[int, list[float]]:
    """Norms of the gradient at each block's input, over all micro-batches of a step, from autograd alone."""
    opt, found = SGD(network.parameters(), lr=RATE, momentum=0.9), dict[int, list[float]]()
    batches = list(loader())
    for step in range(STEPS):
        whole = {key: torch.cat([b[key] for b in batches[MICRO * step : MICRO * (step + 1)]]) for key in batches[0]}
        x, inputs = whole["inputs"].requires_grad_(), []
        for block in network.blocks:
            inputs.append(x)
            x = block(x)
        loss = F.cross_entropy(x, whole["labels"])
        found[step] = [g.double().norm().item() for g in torch.autograd.grad(loss, inputs[:3], retain_graph=True)]
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        opt.step()
    return found


@pytest.mark.usefixtures("their_warnings")
@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_a_training_gives_one_table_whoever_writes_its_loop(train: Train, tmp_path: Path) -> None:
    """Float32: its rounding, and 1e-6 beside it."""
    network = Network()
    twin = copy.deepcopy(network)
    wanted = by_the_definition(copy.deepcopy(network))
    untracked, tables = copy.deepcopy(network), dict[int, pd.DataFrame]()
    train(network, track(network, every=2, to=tables.__setitem__), tmp_path)
    assert list(tables) == [0, 2, 4]
    for step, table in tables.items():
        total = table.query("probe == 'gradient_norms' and quantity == 'total'")
        assert total["block"].tolist() == ["blocks.0", "blocks.1", "blocks.2"]
        assert total["value"].tolist() == pytest.approx(wanted[step], rel=5e-6)
    plain: dict[int, pd.DataFrame] = {}
    in_a_plain_loop(twin, track(twin, every=2, to=plain.__setitem__), tmp_path)
    pd.testing.assert_frame_equal(pd.concat(tables.values()), pd.concat(plain.values()), rtol=1e-6, atol=1e-9)
    assert not network._forward_pre_hooks
    train(untracked, nullcontext(), tmp_path)
    assert_same_weights(network, untracked)


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.usefixtures("their_warnings")
def test_mixed_precision_of_accelerate(tmp_path: Path) -> None:
    """The table is that of a plain loop under autocast: to float32's rounding, which the weights carry on."""
    network = Network()
    twin, untracked = copy.deepcopy(network), copy.deepcopy(network)
    tables, plain = dict[int, pd.DataFrame](), dict[int, pd.DataFrame]()
    tracked = track(network, every=2, to=tables.__setitem__)
    in_accelerate_s_loop(network, tracked, tmp_path, mixed_precision="bf16")
    in_accelerate_s_loop(untracked, nullcontext(), tmp_path, mixed_precision="bf16")
    assert_same_weights(network, untracked)
    forward = twin.forward
    twin.forward = torch.autocast("cpu", torch.bfloat16)(forward)
    in_a_plain_loop(twin, track(twin, every=2, to=plain.__setitem__), tmp_path)
    assert list(tables) == [0, 2, 4]
    pd.testing.assert_frame_equal(pd.concat(tables.values()), pd.concat(plain.values()), rtol=1e-5, atol=1e-8)


class Stopped(Network):
    """Its fourth forward in training is interrupted: the second micro-batch of the second step."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += self.training
        hidden = self.blocks[0](inputs)
        if self.training and self.calls == 4:
            raise self.error
        logits = self.blocks[1:](hidden)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.usefixtures("their_warnings")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)
def test_nothing_stays_where_a_training_is_interrupted(
    train: Train, error: type[BaseException], tmp_path: Path
) -> None:
    """In the middle of a forward, with a micro-batch collected. Lightning ends the process at Ctrl-C."""
    network, tables = Stopped(error), dict[int, pd.DataFrame]()
    tracked = track(network, every=1, to=tables.__setitem__)
    before = [list(hooks) for hooks in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)]
    stance = torch._dynamo.eval_frame._stance
    with pytest.raises((error, SystemExit)):
        train(network, tracked, tmp_path)
    assert list(tables) == [0]
    after = [list(hooks) for hooks in (optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks)]
    assert after == before
    assert torch._dynamo.eval_frame._stance == stance
    assert _get_current_function_mode_stack() == []
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
