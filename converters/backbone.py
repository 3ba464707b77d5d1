"""Backbone: the tensors of a pre-trained ResNet under torchvision's names, and what is known about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from converters import arch as archs
from converters.errors import VerificationError
from converters.messages import summarize

# Input normalisation of torchvision, timm and the field: RGB in [0, 255]; .485 .456 .406 and .229 .224 .225 of it.
MEAN255 = (123.675, 116.28, 103.53)
STD255 = (58.395, 57.12, 57.375)
STAGE_NAMES = ("layer1", "layer2", "layer3", "layer4")  # detectron2's res2 … res5


@dataclass(frozen=True)
class Source:
    """Where a backbone was read.

    Attributes:
        format: the checkpoint format that was recognised, or timm, torchvision, random for a named network.
        path: the file or name given.
        sha256: of the file; of the tensors where there is no file.
        weights: the set of weights that was read of a file.
        variant: what was read where it is not what the file's authors transfer: "key", "model" …, or "".
    """

    format: str
    path: str
    sha256: str
    weights: str = ""
    variant: str = ""

    @property
    def content_id(self) -> str:
        """Identity of the tensors: one file may hold several sets of weights."""
        return self.sha256 + f"-{self.variant}" * bool(self.variant)


@dataclass(frozen=True)
class Backbone:
    """A ResNet without its classifier.

    Attributes:
        tensors: float32 weights and BN statistics by torchvision name, in the order of the network.
        arch: the network, e.g. "resnet50" (see converters/arch.py).
        source: where the tensors were read.
        meta: what is known about the training: method, label_ratio, epochs … and, in this suite's own
            checkpoints alone, `backbone_id`.
    """

    tensors: dict[str, Tensor]
    arch: str
    source: Source
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features: 512 or 2048."""
        return archs.feature_dim(self.arch)

    @property
    def backbone_id(self) -> str:
        """Identity of the pre-training regardless of its seed, e.g. "unimoco-3f2a…", "timm:resnet50", "sha256-…".

        It ends in "-key", "-model" … where another set of weights than the file's default was read.
        """
        if "backbone_id" in self.meta:
            return str(self.meta["backbone_id"]) + f"-{self.source.variant}" * bool(self.source.variant)
        if self._is_named:
            name, _, options = self.source.path.partition("?")
            return name + "?pretrained=false" * ("pretrained=false" in options.lower())
        return f"sha256-{self.source.content_id}"

    @property
    def seed(self) -> int | None:
        """Seed of the pre-training or of the random weights; None for pre-trained library weights and foreign files.

        A seed in a foreign file does not count: nothing there says which files differ by their seed alone.
        """
        return self.meta.get("seed") if self._is_named or "backbone_id" in self.meta else None

    @property
    def _is_named(self) -> bool:
        """Whether the weights come from timm:NAME, torchvision:NAME or random:ARCH, and from no file."""
        return self.source.path.startswith(f"{self.source.format}:")

    def build(self) -> nn.Module:
        """Return the network with a copy of these tensors, in eval mode.

        It maps (N, 3, H, W) images to (N, feature_dim) features; its stages are `layer1 … layer4`.
        """
        with torch.device("meta"):  # no random weights are drawn
            network = archs.build(self.arch)
        network.load_state_dict({name: t.clone() for name, t in self.tensors.items()}, strict=True, assign=True)
        return network.eval()

    def compare(self, state: Mapping[str, Tensor], ignore: Callable[[str], bool] = lambda name: False) -> int:
        """Check that `state` holds exactly these tensors; return how many were compared.

        Args:
            state: the backbone of a built model under torchvision's names; see `converters.backbone_state`.
            ignore: returns True for the name of a tensor that `state` may lack.

        Raises:
            VerificationError: names the tensors that are absent, left over or different.
        """
        both = [name for name in self.tensors if name in state]
        problems = {
            "absent": [name for name in self.tensors if name not in state and not ignore(name)],
            "left over": [name for name in state if name not in self.tensors],
            "different": [n for n in both if not torch.equal(state[n].detach().cpu(), self.tensors[n])],
        }
        if found := summarize(problems):
            raise VerificationError(f"the built model does not hold {self.source.path} ({found})")
        return len(both)


def is_counter(name: str) -> bool:
    """Return True for BN's step counter, which no forward pass reads and some formats omit."""
    return name.endswith("num_batches_tracked")
