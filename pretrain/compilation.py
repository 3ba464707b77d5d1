"""Compilation of the encoders: torch.compile, and on a GPU CUDA graphs, which replay a pass in one launch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from common.distributed import rank, world_size

if TYPE_CHECKING:
    from pretrain.engine import Training

PASSES = 3  # inductor compiles in the first, warms up in the second and records CUDA graphs in the third


def compile_encoders(t: Training) -> str:
    """Compile the encoders of a training as `optim.compile` asks, before they are wrapped for several processes.

    Each encoder is tried on a blank micro-batch. Where that fails, all of them run as they were and one line says why.

    Returns:
        What the encoders run as: "eager", "compiled" or "CUDA graphs".
    """
    wanted = t.config.optim.compile
    if not (t.device.type == "cuda" if wanted == "auto" else wanted):
        return "eager"
    encoders = list(t.model.children())
    for encoder in encoders:
        if t.device.type == "cuda":
            encoder.compile(mode="reduce-overhead")
        else:
            encoder.compile()
    try:
        for encoder in encoders:
            _try(t, encoder)
    except Exception as error:  # noqa: BLE001  compilers raise errors of every kind; training does not depend on them
        for encoder in encoders:
            encoder._compiled_call_impl = None
            encoder.zero_grad(set_to_none=True)
        if rank() == 0:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"warning: not compiled, training is slower ({reason}); --optim.compile false skips this", flush=True)
        return "eager"
    return "CUDA graphs" if t.device.type == "cuda" else "compiled"


def _try(t: Training, encoder: nn.Module) -> None:
    """Run an encoder on a blank micro-batch, with gradients where it is trained; leave its state as it was.

    The gradients stay allocated: those of micro-batches add up outside the memory that a CUDA graph writes over.
    """
    c = t.config
    images = c.optim.batch // world_size() // c.optim.accumulate
    views = torch.zeros((images, c.views.size, c.views.size, 3), dtype=torch.uint8, device=t.device)
    trained = any(p.requires_grad for p in encoder.parameters())
    for p in encoder.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    buffers = copy.deepcopy(dict(encoder.named_buffers()))
    for _ in range(PASSES):
        with torch.set_grad_enabled(trained):
            output = t.encode(encoder, views)
        if trained:
            output.float().square().sum().backward()
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():
            buffer.copy_(buffers[name])
    encoder.zero_grad(set_to_none=False)
