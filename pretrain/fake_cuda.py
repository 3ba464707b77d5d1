"""A GPU that holds no numbers: torch's FakeTensorMode on "cuda".

Fake tensors have shapes, types and devices and take no memory, so a step of any size runs on any machine, and operands
on two devices are an error as on a GPU. Autograd's engine does not run on them: the backward pass is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from common import features
from pretrain import model

CUDA = torch.device("cuda", 0)


@contextmanager
def fake_cuda(bf16: bool = True) -> Iterator[None]:
    """Let "cuda" hold fake tensors inside `with`; `bf16` says whether that GPU computes bfloat16."""
    features._mean_and_std.cache_clear()  # constants on a GPU, which is another one inside and outside
    pinned = patch.object(Tensor, "pin_memory", lambda self: self)  # there is no driver to pin memory with
    autocast = patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    supported = patch("torch.cuda.is_bf16_supported", return_value=bf16)
    shuffled = patch.object(model, "shuffle", _on_host(model.shuffle))
    try:
        with pinned, autocast, supported, shuffled, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield
    finally:
        features._mean_and_std.cache_clear()


def move(module: nn.Module) -> nn.Module:
    """Replace parameters and buffers by fake ones on the GPU, where they stay: `to` does nothing any more."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(_on_gpu(p), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = _on_gpu(b)
    module.to = lambda *_, **__: module  # type: ignore[method-assign]  # it cannot swap fake tensors
    return module


def _on_host(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function return real numbers: the host reads the order of a shuffled batch."""

    @wraps(function)
    def real(*arguments: object) -> Tensor:
        with unset_fake_temporarily():
            return function(*arguments)

    return real


def _on_gpu(x: Tensor) -> Tensor:
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return torch.empty_like(x, device=CUDA, memory_format=layout)
