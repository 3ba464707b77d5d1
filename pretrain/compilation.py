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


def compile_encoders(t: Training) -> None:
    """Compile the encoders of a training as `optim.compile` asks, before they are wrapped for several processes.

    `t.compiled` becomes what they run as: "eager", "compiled" or "CUDA graphs". Each encoder is tried on a blank
    micro-batch; where that fails, all of them run eagerly, and one line says why.
    """
    t.compiled, wanted = "eager", t.config.optim.compile
    if not (t.device.type == "cuda" if wanted == "auto" else wanted):
        return
    encoders, t.compiled = list(t.model.children()), "CUDA graphs" if t.device.type == "cuda" else "compiled"
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
        t.compiled = "eager"
        if rank() == 0:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"warning: not compiled, training is slower ({reason}); --optim.compile false skips this", flush=True)


def keeps_gradients(t: Training) -> bool:
    """Return whether gradients stay allocated between steps.

    Those of several processes are parts of larger buffers. Those of several micro-batches must add up outside the
    memory of a CUDA graph, which the next micro-batch writes over.
    """
    return world_size() > 1 or (t.config.optim.accumulate > 1 and t.compiled != "eager")


def _try(t: Training, encoder: nn.Module) -> None:
    """Run an encoder on a blank micro-batch, with gradients where it is trained; leave its state as it was."""
    c = t.config
    images = c.optim.batch // world_size() // c.optim.accumulate
    views = torch.zeros((images, c.views.size, c.views.size, 3), dtype=torch.uint8, device=t.device)
    trained = any(p.requires_grad for p in encoder.parameters())
    buffers = copy.deepcopy(dict(encoder.named_buffers()))
    if trained and keeps_gradients(t):
        for p in encoder.parameters():
            p.grad = torch.zeros_like(p)
    for _ in range(PASSES):
        with torch.set_grad_enabled(trained):
            output = t.encode(encoder, views)
        if trained:
            output.float().square().sum().backward()
            encoder.zero_grad(set_to_none=not keeps_gradients(t))
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():
            buffer.copy_(buffers[name])
