"""The last stage of a C4 detector with one more batch norm, as MoCo's detectors have it (arXiv 1911.05722, A.1)."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.models.roi_heads.shared_heads import ResLayer
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Res5ExtraNorm(ResLayer):
    """mmdet's last stage, whose output, which box and mask head share, is normalised once more.

    The norm is no part of a checkpoint: it starts with weight 1 and bias 0.
    """

    def __init__(self, depth: int, norm_cfg: dict[str, Any], **settings: Any) -> None:
        super().__init__(depth, norm_cfg=norm_cfg, **settings)
        width = 512 * (4 if depth >= 50 else 1)
        self.add_module("norm", build_norm_layer(norm_cfg, width)[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of regions, (N, 2048, 7, 7) for a ResNet-50 and regions of 14 x 14."""
        return self.norm(super().forward(x))
