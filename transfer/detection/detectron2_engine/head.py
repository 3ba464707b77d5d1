"""MoCo's C4 head for detectron2. Importing this module registers `Res5ROIHeadsExtraNorm`.

A predictor of a C4 model that was trained here needs nothing else:

    import transfer.detection.detectron2_engine.head    # MODEL.ROI_HEADS.NAME: "Res5ROIHeadsExtraNorm"
    predictor = detectron2.engine.DefaultPredictor(cfg)
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

RES5_BLOCKS = {18: 2, 34: 3, 50: 3, 101: 3, 152: 3}


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """detectron2's C4 head with an extra batch norm after res5 (MoCo, arXiv 1911.05722, appendix A.1).

    The norm precedes the average pool, so box and mask head both use it. It is of the kind MODEL.RESNETS.NORM, starts
    with weight 1 and bias 0, and is in no pre-trained file (`roi_heads.res5.norm`).

    Unlike detectron2's own head, it also builds res5 of networks made of BasicBlocks: R18 and R34.
    """

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        """Return res5 with its extra norm, (R, C/2, H, W) to (R, C, H/2, W/2), and C."""
        resnet = cfg.MODEL.RESNETS
        if resnet.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: res5 in the head has no deformable convolution")
        channels, blocks = 8 * resnet.RES2_OUT_CHANNELS, RES5_BLOCKS[resnet.DEPTH]
        shape: dict[str, Any] = {"in_channels": channels // 2, "out_channels": channels, "norm": resnet.NORM}
        kind = BasicBlock
        if resnet.DEPTH >= 50:
            kind = BottleneckBlock
            shape |= {
                "bottleneck_channels": 8 * resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP,
                "num_groups": resnet.NUM_GROUPS, "stride_in_1x1": resnet.STRIDE_IN_1X1,
            }  # fmt: skip
        stage = ResNet.make_stage(kind, blocks, stride_per_block=[2] + [1] * (blocks - 1), **shape)
        res5 = nn.Sequential(*stage)
        res5.add_module("norm", get_norm(resnet.NORM, channels))
        return res5, channels
