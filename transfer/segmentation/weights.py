"""Convert a backbone to mmseg, load it into a segmentor, verify every tensor."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from converters import Backbone, backbone_state
from converters.targets import TARGETS


@dataclass(frozen=True)
class SegmentorBackbone:
    """A backbone in mmseg's format.

    Attributes:
        backbone: what was read from --ckpt.
        settings: what a model's config must hold for these weights: its `backbone` (type, depth, style, ...) and
            `data_preprocessor` (mean, std, bgr_to_rgb).
        tensors: the weights under mmseg's names.
    """

    backbone: Backbone
    settings: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, backbone: Backbone) -> SegmentorBackbone:
        """Convert a backbone.

        Raises:
            ValueError: mmseg has no such network; the message names the layer.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "backbone.pth"
            TARGETS["openmmlab"].save(backbone, path)
            model = Config.fromfile(path.with_suffix(".py")).model.to_dict()
            tensors = torch.load(path, weights_only=True)["state_dict"]
        del model["backbone"]["init_cfg"]  # `load` loads the weights instead, strictly
        return cls(backbone, {name: model[name] for name in ("backbone", "data_preprocessor")}, tensors)

    def fit(self, cfg: Config) -> None:
        """Set this network in a task's config, and the input widths of its heads."""
        cfg.model.backbone.update(self.settings["backbone"])
        cfg.model.pretrained = None  # mmseg's own configs name weights
        widths = [self.backbone.feature_dim >> shift for shift in (3, 2, 1, 0)]
        for head in ("decode_head", "auxiliary_head"):
            if head in cfg.model:
                index = cfg.model[head].in_index
                cfg.model[head].in_channels = widths[index] if isinstance(index, int) else [widths[i] for i in index]

    def check(self, cfg: Config) -> None:
        """Compare a config with the settings.

        Raises:
            ValueError: names the first that differs, or that other weights are asked for.
        """
        if cfg.model.get("pretrained") or cfg.model.backbone.get("init_cfg"):
            raise ValueError("model.pretrained, model.backbone.init_cfg: the weights come from --ckpt; leave them out")
        for part, wanted in self.settings.items():
            for name, value in wanted.items():
                found = cfg.model[part].get(name)
                if (list(found) if isinstance(found, tuple) else found) != value:
                    source = self.backbone.source.path
                    raise ValueError(f"model.{part}.{name}={found!r}: {source} needs {value!r}; do not change it")

    def load(self, model: nn.Module) -> int:
        """Load the weights into a built segmentor, compare every tensor of its backbone, and return their number.

        Raises:
            VerificationError: the segmentor's backbone has other tensors, or one differs from the checkpoint's.
        """
        own = model.get_submodule("backbone")
        shapes = {name: tensor.shape for name, tensor in own.state_dict().items()}
        # Where names or shapes differ nothing is loaded, and the comparison names them.
        if shapes == {name: tensor.shape for name, tensor in self.tensors.items()}:
            own.load_state_dict(self.tensors, strict=True)
        return self.backbone.compare(backbone_state(model.state_dict(), "openmmlab"))
