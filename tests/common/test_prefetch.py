"""Copies to a GPU are made ahead, in order, and waited for; a CPU gets its batches as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from common.loaders import Batch
from common.prefetch import prefetch
from pretrain.fake_cuda import CUDA, fake_cuda


def batches(count: int, events: list[str]) -> Iterator[Batch]:
    for i in range(count):
        events.append(f"load {i}")
        views = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
        yield Batch(views, views, torch.full((2,), i), torch.arange(2), {i: "broken"})


def test_on_a_cpu_batches_are_passed_on() -> None:
    events: list[str] = []
    given = list(batches(3, events))
    assert [a is b for a, b in zip(prefetch(given, torch.device("cpu")), given, strict=True)] == [True] * 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_on_a_gpu_the_next_batch_is_copied_while_a_step_runs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        device = CUDA

        def __init__(self, *_: object) -> None: ...

        def wait_stream(self, _: object) -> None:
            events.append("wait for the copy")

    def record(self: Tensor, _: object) -> None:
        events.append("keep")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(Tensor, "record_stream", record)
    found: list[Any] = []
    with fake_cuda():
        for batch in prefetch(batches(count, events), CUDA):
            events.append("step")
            found.append(batch)
    assert all(t.device == CUDA for b in found for t in (b.q, b.k, b.labels, b.index))
    assert [list(b.corrupt) for b in found] == [[i] for i in range(count)]
    wanted = ["load 0"] if count else []
    for i in range(count):  # the host launches a step, then fetches what follows the next one
        wanted += [f"load {i + 1}"] * (i + 1 < count) + ["wait for the copy", *["keep"] * 4, "step"]
    assert events == wanted
