"""Mixed precision where mmengine has none: on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Forward passes of training under bfloat16 autocast; its range is float32's, so that no loss is scaled."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast besides what gradient accumulation needs."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
