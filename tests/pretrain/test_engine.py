"""The training step: schedule, micro-batches, two processes against one, and no waiting for the device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.distributed import world_size
from common.images import load_images
from common.labels import LabelConfig, keep_labels
from common.loaders import Batch, GlobalBatches, TwoViews
from common.transforms import ViewConfig
from pretrain.batch_norm import running_statistics
from pretrain.config import Config, ModelConfig, OptimConfig
from pretrain.engine import Training, learning_rate, local_groups, training_step
from pretrain.losses import unicon
from pretrain.model import UniMoCo
from tests.common.gloo import run_two

CPU = torch.device("cpu")
IMAGES, BATCH, STEPS = 128, 32, 3
# 4 groups of 8 images; a queue that no batch divides; half of the images keep their label.
CONFIG = Config(
    seed=3,
    labels=LabelConfig(ratio=0.5),
    views=ViewConfig(size=32, scale=(0.4, 1.0)),
    model=ModelConfig(arch="resnet18", dim=16, queue_size=75, ema_momentum=0.9, bn_groups=4),
    optim=OptimConfig(base_lr=0.06, batch=BATCH, epochs=4, precision="fp32"),
)

# For comparisons over several steps: rounding grows fast, because in the last stage batch norm has one place an image
# and divides by the spread of a group's images. Four steps of one process, its weights changed by 1e-7, differ with
# these values by 1e-4 of the loss, 0.005 in the queue and 2 % of the update. Hence the tolerances below.
PAIRED = replace(
    CONFIG,
    model=replace(CONFIG.model, queue_size=150, temperature=0.5),
    optim=replace(CONFIG.optim, batch=2 * BATCH, base_lr=0.001),
)


def start(config: Config = CONFIG) -> Training:
    torch.manual_seed(config.seed)
    return Training(
        config, UniMoCo(config.model, config.model.mask_same_image == "always"), CPU, IMAGES // config.optim.batch
    )


def data(config: Config = CONFIG) -> TwoViews:
    images = load_images(["fashion:train"]).subset(np.arange(IMAGES))
    return TwoViews(images, keep_labels(images, config.labels).labels, config.views, config.seed)


def batches(dataset: TwoViews, batch: int = BATCH, steps: int = STEPS) -> list[Batch]:
    """This rank's part of the first global batches."""
    keys = GlobalBatches(len(dataset), batch, dataset.seed, 0, steps)
    return [dataset.__getitems__(key) for key in keys]


@pytest.fixture(scope="module")
def some() -> list[Batch]:
    return batches(data())


def train(t: Training, given: list[Batch]) -> list[Tensor]:
    losses = []
    for batch in given:
        losses.append(training_step(t, batch)[0])
        t.step += 1
    return losses


class TestLearningRate:
    def rates(self, moments: list[float], **options: Any) -> list[float]:
        config = OptimConfig(base_lr=1.0, batch=256, **options)
        return [learning_rate(config, moment) for moment in moments]

    def test_cosine_by_epoch_stands_still_inside_an_epoch(self) -> None:
        """As MoCo's adjust_learning_rate: lr * 0.5 * (1 + cos(pi * epoch / epochs)) with whole epochs."""
        rates = self.rates([0, 0.99, 1, 1.5, 2, 3, 3.99], epochs=4)
        assert rates == pytest.approx([1, 1, 0.853553, 0.853553, 0.5, 0.146447, 0.146447], abs=1e-6)

    def test_cosine_by_step_moves_on(self) -> None:
        rates = self.rates([0, 0.5, 1, 2, 3, 3.5, 4], epochs=4, lr_update="step")
        assert rates == pytest.approx([1, 0.961940, 0.853553, 0.5, 0.146447, 0.038060, 0], abs=1e-6)

    def test_paper_schedule(self) -> None:
        config = OptimConfig(epochs=800)
        assert config.lr == 0.03
        rates = [learning_rate(config, epoch) for epoch in (0, 200, 400, 600, 799)]
        assert rates == pytest.approx([0.03, 0.0256066, 0.015, 0.0043934, 1.15660e-7], rel=1e-5)

    @pytest.mark.parametrize("every", ["epoch", "step"])
    def test_milestones_of_moco_v1(self, every: str) -> None:
        rates = self.rates([0, 119.9, 120, 159.9, 160, 199], epochs=200, schedule="step", lr_update=every)
        assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_warm_up_rises_with_every_step_and_the_schedule_continues(self) -> None:
        rates = self.rates([0, 0.5, 1, 1.5, 2, 3], epochs=4, warmup=2)
        assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 0.5, 0.146447], abs=1e-6)

    @pytest.mark.parametrize(("batch", "lr"), [(256, 0.03), (512, 0.06), (64, 0.0075)])
    def test_base_rate_is_that_of_256_images(self, batch: int, lr: float) -> None:
        assert OptimConfig(batch=batch).lr == pytest.approx(lr)


class TestGroups:
    @pytest.mark.parametrize(("groups", "accumulate", "local"), [(8, 1, 8), (8, 4, 2), (8, 8, 1), (1, 1, 1)])
    def test_groups_of_a_micro_batch(self, groups: int, accumulate: int, local: int) -> None:
        assert local_groups(groups, OptimConfig(batch=64, accumulate=accumulate)) == local

    def test_groups_that_do_not_divide_over_micro_batches(self) -> None:
        with pytest.raises(ValueError, match=r"model\.bn_groups=8 does not divide over 1 processes x 3 micro-batches"):
            local_groups(8, OptimConfig(batch=64, accumulate=3))

    @pytest.mark.parametrize(("groups", "batch"), [(8, 60), (8, 8), (64, 32)])
    def test_batches_that_make_no_groups(self, groups: int, batch: int) -> None:
        with pytest.raises(ValueError, match=f"optim.batch={batch} does not make {groups} batch-norm groups of 2"):
            local_groups(groups, OptimConfig(batch=batch))


class TestPrecision:
    @pytest.mark.parametrize(("name", "scaled"), [("fp32", False), ("bf16", False), ("fp16", True)])
    def test_only_fp16_scales_its_loss(self, name: Any, scaled: bool) -> None:
        assert start(replace(CONFIG, optim=replace(CONFIG.optim, precision=name))).scaler.is_enabled() is scaled

    @pytest.mark.parametrize("name", ["bf16", "fp16"])
    def test_low_precision_step_is_near_the_fp32_step(self, some: list[Batch], name: Any) -> None:
        """Embeddings are fp32 unit vectors, the loss within 2 % (fp16 and bf16 carry 11 and 8 bits)."""
        reference = float(training_step(start(), some[0])[0])
        t = start(replace(CONFIG, optim=replace(CONFIG.optim, precision=name)))
        loss = training_step(t, some[0])[0]
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(reference, rel=0.02)
        torch.testing.assert_close(t.model.queue.norm(dim=0), torch.ones(75))
        assert all(torch.isfinite(p).all() for p in t.model.parameters())

    def test_a_first_step_that_is_skipped_leaves_weights_and_momentum_as_they_were(self, some: list[Batch]) -> None:
        t = start(replace(CONFIG, optim=replace(CONFIG.optim, precision="fp16")))
        t.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
        before = {name: p.detach().clone() for name, p in t.model.encoder_q.named_parameters()}
        statistics = training_step(t, some[0], measure=True)[1]
        assert (int(t.skipped_steps), float(statistics["loss_scale"])) == (1, 2.0**99)
        for name, p in t.model.encoder_q.named_parameters():
            assert torch.equal(p, before[name]), name
            assert not t.optimizer.state[p]["momentum_buffer"].any(), name


class Recorder:
    """Calls a loss and keeps copies of what it was given."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        self.loss = loss
        self.calls: list[tuple[Tensor, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(tuple(a.detach().clone() for a in args if isinstance(a, Tensor)))
        return self.loss(*args, **kwargs)


class TestStep:
    def test_the_queue_is_read_before_it_is_written(self, some: list[Batch]) -> None:
        t = start()
        t.model.loss_fn = recorder = Recorder(t.model.loss_fn)
        for step, batch in enumerate(some[:2]):
            before = t.model.queue.clone(), t.model.label_queue.clone()
            loss = training_step(t, batch)[0]
            t.step += 1
            q, k, queue, labels, queue_labels = recorder.calls[step]
            assert torch.equal(queue, before[0])
            assert torch.equal(queue_labels, before[1])
            torch.testing.assert_close(loss, unicon(q, k, before[0], labels, before[1], 0.2))
            places = torch.arange(step * BATCH, (step + 1) * BATCH) % 75
            assert torch.equal(t.model.queue[:, places], k.T)
            assert torch.equal(t.model.label_queue[places], batch.labels)
            assert torch.equal(t.model.index_queue[places], batch.index)

    def test_every_kept_label_reaches_the_loss_once_an_epoch(self) -> None:
        """The original code let its label lists fall under the table."""
        dataset = data()
        t = start()
        t.model.loss_fn = recorder = Recorder(t.model.loss_fn)
        train(t, batches(dataset, steps=IMAGES // BATCH))
        reached = torch.cat([call[3] for call in recorder.calls])
        kept = int((dataset.labels != -1).sum())
        assert 0 < kept < IMAGES
        assert int((reached != -1).sum()) == kept
        assert (
            torch.bincount(reached[reached >= 0]).tolist() == np.bincount(dataset.labels[dataset.labels >= 0]).tolist()
        )

    def test_the_key_encoder_moves_before_keys_are_made_and_only_by_momentum(self, some: list[Batch]) -> None:
        t = start()
        train(t, some[:1])
        query = [p.detach().clone() for p in t.model.encoder_q.parameters()]
        key = [p.detach().clone() for p in t.model.encoder_k.parameters()]
        expected = start()  # after the first step the key encoder is still what it was: both were equal
        for p, first in zip(key, expected.model.encoder_k.parameters(), strict=True):
            torch.testing.assert_close(p, first, rtol=0, atol=1e-7)
        train(t, some[1:2])
        for p, q, k in zip(t.model.encoder_k.parameters(), query, key, strict=True):
            torch.testing.assert_close(p, 0.9 * k + 0.1 * q, rtol=0, atol=1e-6)

    def test_no_step_without_a_rate(self, some: list[Batch]) -> None:
        t = start()
        for group in t.optimizer.param_groups:
            group["lr"] = 0.0
        before = [p.detach().clone() for p in t.model.encoder_q.parameters()]
        train(t, some[:1])
        assert all(torch.equal(p, b) for p, b in zip(t.model.encoder_q.parameters(), before, strict=True))

    def test_weights_move_by_the_rule_of_sgd(self, some: list[Batch]) -> None:
        """First step: w - lr * (gradient + weight decay * w), with the gradient of the loss by autograd."""
        t, other = start(), start()
        training_step(t, some[0])
        before = [p.detach().clone() for p in other.model.encoder_q.parameters()]
        keys = other.model.encode_keys(other, some[0].k)
        views = (some[0].q.permute(0, 3, 1, 2).float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / (
            torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        )
        q = torch.nn.functional.normalize(other.model.encoder_q(views), dim=1)
        loss = unicon(q, keys, other.model.queue, some[0].labels, other.model.label_queue, 0.2)
        grads = torch.autograd.grad(loss, list(other.model.encoder_q.parameters()))
        lr = CONFIG.optim.lr
        for p, w, g in zip(t.model.encoder_q.parameters(), before, grads, strict=True):
            torch.testing.assert_close(p.detach(), w - lr * (g + 1e-4 * w), rtol=1e-4, atol=1e-6)

    def test_statistics_come_only_when_asked(self, some: list[Batch]) -> None:
        assert training_step(start(), some[0])[1] == {}
        statistics = training_step(start(), some[0], measure=True)[1]
        assert float(statistics["grad_norm"]) > 0
        assert float(statistics["batch_labelled"]) == float((some[0].labels != -1).double().mean())
        assert float(statistics["queue_fill"]) == 0  # of the queue that the loss saw

    def test_measuring_changes_nothing(self, some: list[Batch]) -> None:
        t, other = start(), start()
        training_step(t, some[0], measure=True)
        training_step(other, some[0])
        for name, tensor in t.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def whole_batch_step(some: list[Batch]) -> dict[str, Any]:
    return one_step(some[0], 1)


def one_step(batch: Batch, accumulate: int) -> dict[str, Any]:
    """After one step SGD's momentum buffer is gradient + weight decay * weight."""
    t = start(replace(CONFIG, optim=replace(CONFIG.optim, accumulate=accumulate)))
    loss = training_step(t, batch)[0]
    grads = [t.optimizer.state[p]["momentum_buffer"] for p in t.model.encoder_q.parameters()]
    return {"loss": loss, "grads": grads, "queue": t.model.queue, "labels": t.model.label_queue, "model": t.model}


class TestMicroBatches:
    @pytest.mark.parametrize("accumulate", [2, 4])
    def test_give_the_step_of_the_whole_batch(
        self, some: list[Batch], whole_batch_step: dict[str, Any], accumulate: int
    ) -> None:
        parts = one_step(some[0], accumulate)
        torch.testing.assert_close(parts["loss"], whole_batch_step["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(parts["queue"], whole_batch_step["queue"], rtol=1e-4, atol=1e-5)
        assert torch.equal(parts["labels"], whole_batch_step["labels"])
        for a, b in zip(parts["grads"], whole_batch_step["grads"], strict=True):
            # Sums over 32 images x up to 256 places in another order, through 18 layers.
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


class Waits(TorchDispatchMode):
    """Notes every operation that would make the host wait for a GPU."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].lstrip("_")
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if by_mask or name in (w.lstrip("_") for w in self.WAITING):
            stack = [f"{frame.filename}:{frame.name}" for frame in traceback.extract_stack()]
            # On the CPU, and only there, the loss reads bounds and the number of positives.
            if not any(
                frame.endswith(("losses.py:_few_pairs", "losses.py:_bound", "losses.py:_add_block")) for frame in stack
            ):
                self.found.append(f"{name} from {[f for f in stack if '/pretrain/' in f][-1:]}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_does_not_wait_for_the_device(some: list[Batch], precision: Any) -> None:
    config = replace(
        CONFIG,
        model=replace(CONFIG.model, mask_same_image="always"),
        optim=replace(CONFIG.optim, precision=precision, accumulate=2),
    )
    t = start(config)
    with Waits() as waits:
        train(t, some[: 1 if precision == "fp16" else 2])  # fp16 is slow on a CPU
    assert waits.found == []


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero()]
)
def test_the_probe_sees_a_wait(ask: Callable[[Tensor], Any]) -> None:
    with Waits() as waits:
        ask(torch.ones(3))
    assert waits.found


def outcome(steps: int) -> dict[str, Any]:
    """Some steps of this rank of a training; what they leave behind."""
    torch.set_num_threads(1)
    t = start(PAIRED)
    losses = torch.stack(train(t, batches(data(PAIRED), 2 * BATCH, steps)))
    weights = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    own = [s.clone() for s in running_statistics(t.model)]
    t.average_statistics()
    return {
        "losses": losses,
        "weights": weights,
        "own_statistics": own,
        "statistics": [s.clone() for s in running_statistics(t.model)],
        "queue": t.model.queue,
        "label_queue": t.model.label_queue,
        "index_queue": t.model.index_queue,
        "queue_ptr": t.model.queue_ptr,
        "world": world_size(),
        "groups": t.model.encoder_q.bn1.groups,
    }


@pytest.fixture(scope="module")
def one_and_two() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return outcome(STEPS), run_two(outcome, STEPS)


@pytest.mark.ddp
class TestTwoProcesses:
    """Two processes of 16 images against one of 32, on Fashion-MNIST, fp32, over several updates of the weights."""

    def test_share_the_work(self, one_and_two: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        one, two = one_and_two
        assert (one["world"], one["groups"]) == (1, 4)
        assert [(r["world"], r["groups"]) for r in two] == [(2, 2), (2, 2)]

    def test_loss(self, one_and_two: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        one, two = one_and_two
        mean = (two[0]["losses"] + two[1]["losses"]) / 2
        assert not torch.equal(two[0]["losses"], two[1]["losses"])  # each has its own half of the batch
        torch.testing.assert_close(mean[:2], one["losses"][:2], rtol=1e-5, atol=0)  # before and after one update
        torch.testing.assert_close(mean, one["losses"], rtol=1e-3, atol=0)

    def test_queue(self, one_and_two: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        one, two = one_and_two
        # Keys of 16 numbers, 0.25 in the mean; the first two batches, then all.
        first = (torch.arange(STEPS * 2 * BATCH) % 150)[150:]  # places written over by later batches
        early = [place for place in range(4 * BATCH) if place not in first.tolist()]
        for result in two:
            torch.testing.assert_close(result["queue"][:, early], one["queue"][:, early], rtol=0, atol=1e-4)
            torch.testing.assert_close(result["queue"], one["queue"], rtol=0, atol=0.02)
            for name in ("label_queue", "index_queue", "queue_ptr"):
                assert torch.equal(result[name], one[name]), name
        assert torch.equal(two[0]["queue"], two[1]["queue"])

    def test_weights(self, one_and_two: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        one, two = one_and_two
        first = dict(start(PAIRED).model.named_parameters())
        error, update = 0.0, 0.0
        for name, weight in one["weights"].items():
            error += float((two[0]["weights"][name] - weight).square().sum())
            update += float((weight - first[name].detach()).square().sum())
            assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
        assert update > 0
        assert (error / update) ** 0.5 < 0.05

    def test_averaged_running_statistics(self, one_and_two: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        one, two = one_and_two
        for result in two:
            torch.testing.assert_close(result["statistics"], one["statistics"], rtol=0.02, atol=0.005)
        # Without averaging, a rank knows only its own groups.
        apart = [(a - b).abs().max() for a, b in zip(two[0]["own_statistics"], one["statistics"], strict=True)]
        assert max(apart) > 0.05
