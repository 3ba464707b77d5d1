"""A probe for what would make the host wait for a GPU."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.fake_cuda import CUDA

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero"}


class HostWaits(TorchDispatchMode):
    """Lists, with the line of this project, each operation that waits for the GPU: reads, and blocking copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = any(x.device.type == "cuda" for x in tensors)
        if on_gpu and name in READS:  # before the call: fake tensors cannot answer it
            self._note(name)
        if on_gpu and name.startswith("index"):
            indices = [i for i in tree_leaves(args[1]) if isinstance(i, Tensor)]
            if any(i.dtype == torch.bool or i.device.type == "cpu" for i in indices):
                self._note(f"{name} by a mask, or by indices on the host")
        if name == "_fused_sgd_":  # it has no form for fake tensors, and changes its operands in place
            assert all(x.device == CUDA for x in tensors)
            return None
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            blocking = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
            if source.device.type != target.device.type and blocking:
                self._note(f"blocking copy {source.device.type} -> {target.device.type} of {tuple(source.shape)}")
        return out

    def _note(self, what: str) -> None:
        frames = [
            f
            for f in traceback.extract_stack()
            if "site-packages" not in f.filename and "/lib/python" not in f.filename
        ]
        ours = [f for f in frames if not f.filename.endswith(("fake_cuda.py", "host_waits.py"))]
        self.found.append(f"{what}: {ours[-1].filename}:{ours[-1].lineno}")
