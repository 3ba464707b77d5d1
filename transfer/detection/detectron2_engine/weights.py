"""Load a backbone into a detectron2 model and verify every tensor."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from converters import Backbone, backbone_state
from converters.backbone import is_counter
from converters.targets import TARGETS


def load_backbone(model: nn.Module, backbone: Backbone) -> int:
    """Load a backbone with detectron2's own loader and compare every tensor of the built model's backbone with it.

    detectron2 only warns when names do not match, and then trains from scratch.

    Returns:
        The number of tensors compared: 100 for R18, 265 for R50.

    Raises:
        VerificationError: names the tensors of the built model that differ from the backbone's.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.pkl"
        TARGETS["detectron2"].save(backbone, path)
        logging.disable(logging.WARNING)  # the tensors of the heads are listed as missing
        try:
            DetectionCheckpointer(model).load(str(path))
        finally:
            logging.disable(logging.NOTSET)
    # BN's step counters are never used, and detectron2's files do not hold them.
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_counter(name)}
    return backbone.compare(backbone_state(state, "detectron2"), ignore=is_counter)
