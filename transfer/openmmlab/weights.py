"""Convert a backbone to OpenMMLab's layout, load it into a built model, verify every tensor."""

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

FROZEN = {"frozen_stages": 4, "norm_eval": True}  # of a task with `freeze_backbone`


@dataclass(frozen=True)
class ModelBackbone:
    """A backbone in OpenMMLab's format.

    Attributes:
        backbone: what was read from --ckpt.
        settings: what a model's config must hold for these weights: its `backbone` (type, depth, style, ...) and
            `data_preprocessor` (mean, std, bgr_to_rgb).
        tensors: the weights under OpenMMLab's names.
    """

    backbone: Backbone
    settings: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, backbone: Backbone) -> ModelBackbone:
        """Convert a backbone.

        Raises:
            ValueError: OpenMMLab has no such network; the message names the layer.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "backbone.pth"
            TARGETS["openmmlab"].save(backbone, path)
            model = Config.fromfile(path.with_suffix(".py")).model.to_dict()
            tensors = torch.load(path, weights_only=True)["state_dict"]
        del model["backbone"]["init_cfg"]  # `load` loads the weights instead, strictly
        return cls(backbone, {name: model[name] for name in ("backbone", "data_preprocessor")}, tensors)

    @property
    def widths(self) -> list[int]:
        """Channels of the four stages."""
        return [self.backbone.feature_dim >> shift for shift in (3, 2, 1, 0)]

    def fit(self, cfg: Config) -> None:
        """Set this network in a task's config."""
        cfg.model.backbone.update(self._wanted(cfg)["backbone"])

    def _wanted(self, cfg: Config) -> dict[str, dict[str, Any]]:
        frozen = FROZEN if cfg.get("freeze_backbone") else {}
        return {**self.settings, "backbone": self.settings["backbone"] | frozen}

    def check(self, cfg: Config) -> None:
        """Compare a config with the settings.

        Raises:
            ValueError: names the first that differs, or that other weights are asked for.
        """
        if cfg.model.get("pretrained") or cfg.model.backbone.get("init_cfg"):
            raise ValueError("model.pretrained, model.backbone.init_cfg: the weights come from --ckpt; leave them out")
        for part, wanted in self._wanted(cfg).items():
            for name, value in wanted.items():
                found = cfg.model[part].get(name)
                if (list(found) if isinstance(found, tuple) else found) != value:
                    source = self.backbone.source.path
                    raise ValueError(f"model.{part}.{name}={found!r}: {source} needs {value!r}; do not change it")

    def load(self, model: nn.Module) -> int:
        """Load the weights into a built model, compare every tensor of its backbone, and return their number.

        The last stage of a C4 detector lies in its RoI head, and is loaded and compared there.

        Raises:
            VerificationError: the model's backbone has other tensors, or one differs from the checkpoint's.
        """
        own = backbone_of(model)
        # Where names or shapes differ nothing is loaded, and the comparison names them.
        if {name: tensor.shape for name, tensor in own.items()} == {n: t.shape for n, t in self.tensors.items()}:
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(self.tensors[name])
        state = {f"backbone.{name}": tensor for name, tensor in backbone_of(model).items()}
        return self.backbone.compare(backbone_state(state, "openmmlab"))


def backbone_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model's backbone; with the last stage of a C4 detector, which lies in its RoI head."""
    found = model.get_submodule("backbone").state_dict()
    head = getattr(getattr(model, "roi_head", None), "shared_head", None)
    if head is not None:
        found |= {name: tensor for name, tensor in head.state_dict().items() if name.startswith("layer4.")}
    return found
