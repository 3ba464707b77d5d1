"""Pre-training on a real GPU against the CPU, and CUDA graphs against the eager step. Without a GPU nothing runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.loaders import Batch
from common.prefetch import prefetch
from converters import read_backbone
from pretrain.engine import Training, training_step
from pretrain.losses import LOSSES
from pretrain.model import UniMoCo
from tests.pretrain.small_run import finish, options, start, wait_for_step, write_images
from tests.pretrain.test_engine import BATCH, PAIRED, batches, data

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or "NULL_GPU" in os.environ, reason="needs a GPU that computes"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_compiler() -> Iterator[None]:
    """Forget what was compiled before: of one function the compiler makes eight versions in a process, then no more."""
    torch.compiler.reset()
    yield
    torch.cuda.set_sync_debug_mode("default")


def trained(device: torch.device, given: list[Batch], config: Any = PAIRED, **optim: Any) -> tuple[Training, Tensor]:
    """Do a step on each batch; return the training and the losses."""
    torch.manual_seed(0)
    config = replace(config, optim=replace(config.optim, **optim))
    t, losses = Training(config, UniMoCo(config.model), device, 100), []
    pinned = [batch.pin_memory() for batch in given] if device == CUDA else given
    for batch in prefetch(pinned, device):
        losses.append(training_step(t, batch)[0])
        t.step += 1
    return t, torch.stack(losses).double().cpu()


@pytest.fixture(scope="module")
def given() -> list[Batch]:
    return batches(data(PAIRED), 2 * BATCH)


def differences(a: Training, b: Training) -> dict[str, float]:
    """Return the relative difference of the query encoder's weights and of the queue."""

    def far(x: Tensor, y: Tensor) -> float:
        return float((x.double().cpu() - y.double().cpu()).norm() / y.double().norm().cpu())

    weights = [torch.cat([p.detach().flatten() for p in t.model.encoder_q.parameters()]) for t in (a, b)]
    return {"weights": far(*weights), "queue": far(a.model.queue, b.model.queue)}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_equal_those_of_the_cpu_in_double_precision(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    q, k, queue = (torch.nn.functional.normalize(torch.randn(n, 128, generator=g), dim=1) for n in (64, 64, 40_000))
    labels, queue_labels = (torch.randint(-1, 50, (n,), generator=g) for n in (64, 40_000))
    found = []
    for device, dtype in ((CPU, torch.float64), (CUDA, torch.float32)):
        x = q.to(device, dtype).requires_grad_()
        others = k.to(device, dtype), queue.T.to(device, dtype), labels.to(device), queue_labels.to(device)
        loss = LOSSES[name](x, *others, 0.2)
        loss.backward()
        found.append((loss.detach().double().cpu(), x.grad.double().cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    assert float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < 1e-4


def test_steps_in_fp32_equal_those_of_the_cpu(given: list[Batch]) -> None:
    """Within what rounding makes of four steps; see the tolerances of test_engine."""
    (cpu, expected), (gpu, losses) = (trained(device, given, compile=False, precision="fp32") for device in (CPU, CUDA))
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=0)
    apart = differences(gpu, cpu)
    assert apart["weights"] < 1e-4, apart
    assert apart["queue"] < 0.02, apart


@pytest.mark.parametrize(
    ("accumulate", "precision", "tolerance"), [(1, "fp32", 2e-3), (2, "fp32", 2e-3), (1, "bf16", 2e-2)]
)
def test_cuda_graphs_equal_eager_steps(given: list[Batch], accumulate: int, precision: str, tolerance: float) -> None:
    (eager, expected), (graphs, losses) = (
        trained(CUDA, given, compile=c, precision=precision, accumulate=accumulate) for c in (False, True)
    )
    assert (eager.compiled, graphs.compiled) == ("eager", "CUDA graphs")
    apart = differences(graphs, eager)
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0, msg=lambda m: f"{m}; {apart}")
    assert apart["queue"] < 10 * tolerance, apart


@pytest.mark.parametrize("compile_option", [False, True])
@pytest.mark.parametrize(("accumulate", "precision"), [(1, "bf16"), (2, "bf16"), (1, "fp16")])
def test_no_step_waits(given: list[Batch], compile_option: bool, accumulate: int, precision: str) -> None:
    t, _ = trained(CUDA, given, compile=compile_option, precision=precision, accumulate=accumulate)
    assert t.compiled == ("CUDA graphs" if compile_option else "eager")
    torch.cuda.set_sync_debug_mode("error")  # an operation for which the host waits is an error
    for batch in prefetch([b.pin_memory() for b in given], CUDA):
        training_step(t, batch, measure=True)
        t.step += 1


def test_an_fp16_step_that_overflows_is_skipped_and_counted(given: list[Batch]) -> None:
    t, _ = trained(CUDA, given[:1], compile=False, precision="fp16")
    t.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=10**6)
    before = [p.detach().clone() for p in t.model.encoder_q.parameters()]
    skipped_before, batch = int(t.skipped_steps), next(prefetch([given[0].pin_memory()], CUDA))
    training_step(t, batch)
    assert int(t.skipped_steps) == skipped_before + 1
    assert all(torch.equal(a, b) for a, b in zip(before, t.model.encoder_q.parameters(), strict=True))
    for _ in range(40):  # the scale is halved until gradients fit
        training_step(t, batch)
        t.step += 1
    assert 1 < int(t.skipped_steps) < 41
    assert any(not torch.equal(a, b) for a, b in zip(before, t.model.encoder_q.parameters(), strict=True))
    assert all(bool(s["momentum_buffer"].isfinite().all()) for s in t.optimizer.state.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stopped_run_continues_and_every_machine_reads_its_backbone(precision: str, tmp_path: Path) -> None:
    arguments = options(
        write_images(tmp_path / "images"), tmp_path, device="cuda", optim__precision=precision, optim__compile="true",
        data__workers=2, checkpoint__last_every=100_000, optim__epochs=500,
    )  # fmt: skip
    process = start(arguments)
    wait_for_step(process, tmp_path / "r", 3)
    process.send_signal(signal.SIGTERM)
    assert "stopped at step" in finish(process, 143)
    finish(start(arguments))
    state = torch.load(tmp_path / "r" / "last.pth", map_location="cpu", weights_only=True)
    assert state["step"] == 2000
    assert (state["meta"]["compiled"], state["meta"]["precision"]) == ("CUDA graphs", precision)
    tensors = read_backbone(str(tmp_path / "r" / "last.pth")).state_dict
    assert all(bool(value.isfinite().all()) for value in tensors.values())
