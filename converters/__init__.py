"""Convert any self-supervised checkpoint to detectron2, OpenMMLab, torchvision and timm, and verify the result.

from converters import read_backbone
backbone = read_backbone("checkpoint.pth")     # any format in converters/formats.yaml
network = backbone.build()                      # a torchvision-like ResNet with its weights
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import common  # noqa: F401  says what is to be done where the environment is not active

if TYPE_CHECKING:
    from converters.backbone import Backbone, Source
    from converters.errors import VerificationError
    from converters.sources import ReadOptions, backbone_state, read_backbone

__all__ = ["Backbone", "ReadOptions", "Source", "VerificationError", "backbone_state", "read_backbone"]
_PLACES = {"Backbone": "backbone", "Source": "backbone", "VerificationError": "errors"}
_PLACES |= dict.fromkeys(("ReadOptions", "backbone_state", "read_backbone"), "sources")


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch takes a second, and options are parsed without (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
