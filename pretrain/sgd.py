"""SGD with momentum and weight decay, in one fused call over all weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class HostSGD(torch.optim.SGD):
    """torch's fused SGD for a CPU without its copies: it clones every gradient in channels-last format.

    The update is elementwise, so it may see the dimensions in the order in which they lie in memory. Weights and
    state equal those of torch's, bit for bit. The momentum must exist before the first step, as zeros.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            weights, grads = [], []
            momentum: list[Tensor | None] = []
            for p in (p for p in group["params"] if p.grad is not None):
                weights.append(_as_stored(p, p))
                grads.append(_as_stored(p.grad, p))
                momentum.append(_as_stored(self.state[p]["momentum_buffer"], p))
            options = ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize", "fused")
            sgd(
                weights,
                grads,
                momentum,
                **{name: group[name] for name in options},
                grad_scale=getattr(self, "grad_scale", None),  # GradScaler's
                found_inf=getattr(self, "found_inf", None),
            )


def _as_stored(x: Tensor, weights: Tensor) -> Tensor:
    """Return a view of `x` that has the dimensions of `weights` in their order in memory."""
    in_order = weights.is_contiguous() or not weights.is_contiguous(memory_format=torch.channels_last)
    return x if in_order else x.permute(0, 2, 3, 1)
