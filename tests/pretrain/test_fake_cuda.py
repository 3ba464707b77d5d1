"""The step on a fake GPU: no operand on another device, and nothing that makes the host wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.testing._internal.distributed.fake_pg import FakeStore

from common.loaders import Batch
from pretrain import engine
from pretrain.config import Config
from pretrain.engine import Training, training_step
from pretrain.fake_cuda import CUDA, fake_cuda, move
from pretrain.model import Classifier, UniMoCo
from tests.pretrain.host_waits import HostWaits
from tests.pretrain.test_engine import CONFIG

BATCH, SIZE = 64, 32


@pytest.fixture(params=[1, 8], ids=["one process", "rank 1 of 8"])
def world(request: pytest.FixtureRequest) -> Iterator[int]:
    """Processes; the others exist in name only, so what they send is undefined."""
    if request.param > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=request.param)
    yield request.param
    if dist.is_initialized():
        dist.destroy_process_group()


def configuration(world: int, precision: Any, accumulate: int) -> Config:
    return replace(
        CONFIG,
        model=replace(CONFIG.model, bn_groups=world * accumulate, mask_same_image="always", queue_size=96),
        optim=replace(CONFIG.optim, batch=BATCH * world, precision=precision, accumulate=accumulate, compile=False),
    )


def batch() -> Batch:
    views = torch.zeros((BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    return Batch(views, views.clone(), torch.arange(BATCH), torch.arange(BATCH), {})


def backward(t: Training) -> Any:
    """Return a stand-in for Tensor.backward: autograd's engine wants a real GPU."""

    def assign(loss: Tensor) -> None:
        assert loss.device == CUDA
        assert loss.requires_grad
        for p in t.model.encoder_q.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.add_(0)

    return assign


@pytest.mark.parametrize("accumulate", [1, 8])
@pytest.mark.parametrize(("method", "precision"), [("unimoco", "bf16"), ("unimoco", "fp16"), ("classifier", "fp32")])
def test_a_step_never_waits(
    world: int, method: str, precision: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneOfMany(nn.Module):
        """DistributedDataParallel's interface; its reducer wants tensors with storage."""

        def __init__(self, module: nn.Module, **_: object) -> None:
            super().__init__()
            self.module, self.no_sync = module, mock.MagicMock()

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    config = configuration(world, precision, accumulate)
    model = UniMoCo(config.model, True) if method == "unimoco" else Classifier(config.model, 10)
    monkeypatch.setattr(engine, "DistributedDataParallel", OneOfMany)
    with fake_cuda(), HostWaits() as waits:
        t, given = Training(config, move(model), CUDA, 100), batch()
        with mock.patch.object(Tensor, "backward", backward(t)):
            training_step(t, given)  # constants are copied to the device once
            del waits.found[:]
            loss, statistics = training_step(t, given, measure=True)
    assert loss.device == CUDA
    assert all(value.device == CUDA for value in statistics.values())
    assert "grad_norm" in statistics
    assert waits.found == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x[torch.arange(2)],
        lambda x: x.cpu(), lambda x: x + torch.tensor([1.0, 2, 3], device=CUDA), lambda x: x.copy_(torch.ones(3)),
    ],
)  # fmt: skip
def test_the_probe_sees_a_wait(wait: Any) -> None:
    with fake_cuda(), HostWaits() as waits:
        x = torch.ones(3, device=CUDA)
        with suppress(DataDependentOutputException, DynamicOutputShapeException):  # there is no number to return
            wait(x)
    assert waits.found


def test_the_probe_sees_operands_on_two_devices() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=CUDA) + torch.ones(3)
