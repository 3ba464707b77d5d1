"""Convert any self-supervised checkpoint to detectron2, OpenMMLab, torchvision and timm, and verify the result.

from converters import read_backbone
backbone = read_backbone("checkpoint.pth")     # any format in converters/formats.yaml
network = backbone.build()                      # a torchvision-like ResNet with its weights
"""

import common  # noqa: F401  says what is to be done where the environment is not active
from converters.backbone import Backbone, Source, VerificationError
from converters.sources import ReadOptions, backbone_state, read_backbone

__all__ = ["Backbone", "ReadOptions", "Source", "VerificationError", "backbone_state", "read_backbone"]
