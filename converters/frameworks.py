"""Build detectron2's and OpenMMLab's own models as their users do. Never both in one process."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.backbone import STAGE_NAMES

RIVALS = {"detectron2": ("mmengine", "mmcv", "mmseg"), "openmmlab": ("detectron2",)}


@dataclass(frozen=True)
class BuiltModel:
    """A framework's model with the backbone in it.

    Attributes:
        model: the whole model.
        stages: those of layer1 … layer4 that it has.
        run: passes normalised (N, 3, H, W) images through the stages.
        prepare: turns an (H, W, 3) uint8 RGB photograph into the input of `run`, as the framework's settings say.
    """

    model: nn.Module
    stages: Mapping[str, nn.Module]
    run: Callable[[Tensor], Any]
    prepare: Callable[[np.ndarray], Tensor]


def stages_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return layer1 … layer4 of a network that names them so."""
    return {stage: network.get_submodule(stage) for stage in STAGE_NAMES}


def mask_rcnn(settings: str, head: str, weights: Path | None = None) -> BuiltModel:
    """Build detectron2's Mask R-CNN on the CPU.

    Args:
        settings: YAML merged over the model zoo's config.
        head: "FPN", or "C4", where res5 is in the RoI head.
        weights: a file for detectron2's own loader.
    """
    with _quiet():  # its imports print deprecations, its loader every head that the file lacks
        from detectron2 import model_zoo
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.config import CfgNode
        from detectron2.data.detection_utils import convert_PIL_to_numpy
        from detectron2.modeling import build_model

        cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/mask_rcnn_R_50_{head}_1x.yaml")
        cfg.merge_from_other_cfg(CfgNode.load_cfg(settings))
        cfg.MODEL.DEVICE = "cpu"
        model = build_model(cfg).eval()
        if weights is not None:
            DetectionCheckpointer(model).load(str(weights))
    bottom = model.backbone.bottom_up if head == "FPN" else model.backbone
    stages = {f"layer{n}": bottom.get_submodule(f"res{n + 1}") for n in (1, 2, 3)}
    # The C4 head has three Bottlenecks whatever the depth, so a BasicBlock network has no res5 there.
    res5 = bottom.res5 if head == "FPN" else model.roi_heads.res5 if cfg.MODEL.RESNETS.DEPTH >= 50 else None
    if res5 is not None:
        stages["layer4"] = res5

    def run(images: Tensor) -> None:
        features = bottom(images)
        if head == "C4" and res5 is not None:
            res5(features["res4"])

    def prepare(image: np.ndarray) -> Tensor:
        from PIL import Image

        pixels = convert_PIL_to_numpy(Image.fromarray(image), cfg.INPUT.FORMAT)
        chw = torch.tensor(pixels.transpose(2, 0, 1).astype("float32"))
        return model.preprocess_image([{"image": chw}]).tensor

    return BuiltModel(model, stages, run, prepare)


def fcn(settings: Path | Mapping[str, Any]) -> BuiltModel:
    """Build mmseg's FCN on the CPU; `settings`, an OpenMMLab config, give its backbone and input.

    `init_weights` runs, so that an init_cfg loads its checkpoint the way OpenMMLab does.
    """
    with _quiet():
        from mmengine.config import Config
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        cfg = Config.fromfile(settings) if isinstance(settings, Path) else Config(settings)
        width = 512 if cfg.model.backbone.depth < 50 else 2048
        norm = {"type": "BN"}
        decode_head = {"type": "FCNHead", "in_channels": width, "channels": 8, "num_classes": 2, "norm_cfg": norm}
        loss = {"type": "CrossEntropyLoss"}
        cfg.model.update(type="EncoderDecoder", decode_head=dict(decode_head, loss_decode=loss))
        cfg.model.data_preprocessor.setdefault("type", "SegDataPreProcessor")
        model = MODELS.build(cfg.model)
        model.init_weights()
    model.eval()

    def prepare(image: np.ndarray) -> Tensor:
        bgr = torch.tensor(image[:, :, ::-1].copy()).permute(2, 0, 1)  # as mmcv.imread returns it
        return model.data_preprocessor({"inputs": [bgr]})["inputs"]

    return BuiltModel(model, stages_of(model.backbone), model.backbone, prepare)


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
