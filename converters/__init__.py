"""Any self-supervised checkpoint into detectron2, OpenMMLab, torchvision and timm, proved equal.

from converters import read_backbone
backbone = read_backbone("checkpoint.pth")     # any layout in converters/formats.py
network = backbone.build()                      # a torchvision-like ResNet, loaded strict
"""

from converters.backbone import Backbone, Source, VerificationError
from converters.sources import backbone_state, read_backbone

__all__ = ["Backbone", "Source", "VerificationError", "backbone_state", "read_backbone"]
