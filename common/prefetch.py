"""Batches that are on the GPU before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from common.loaders import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device. On a GPU the next one is copied on a stream of its own while a step computes.

    Args:
        batches: in pinned memory where the device is a GPU; elsewhere they are yielded as they are.
        device: where the step computes.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        if ahead is not None:
            yield _ready(ahead, stream)
        with torch.cuda.stream(stream):
            ahead = _copy(batch, device)
    if ahead is not None:
        yield _ready(ahead, stream)


def _copy(batch: Batch, device: torch.device) -> Batch:
    q, k, labels, index = (t.to(device, non_blocking=True) for t in (batch.q, batch.k, batch.labels, batch.index))
    return Batch(q, k, labels, index, batch.corrupt)


def _ready(batch: Batch, stream: torch.cuda.Stream) -> Batch:
    """Let the current stream wait for the copies, and keep their memory until it has used them."""
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    for tensor in (batch.q, batch.k, batch.labels, batch.index):
        tensor.record_stream(current)
    return batch
