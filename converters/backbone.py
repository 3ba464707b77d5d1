"""Backbone: the tensors of a pre-trained ResNet in torchvision's names, and what is known of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from converters import arch as archs

# The input that torchvision, timm and the field pre-train on: RGB in [0, 255], .485 .456 .406 and .229 .224 .225.
MEAN255 = (123.675, 116.28, 103.53)
STD255 = (58.395, 57.12, 57.375)
STAGES = ("layer1", "layer2", "layer3", "layer4")  # detectron2's res2 … res5


class VerificationError(RuntimeError):
    """A built model is not the backbone: tensors or features differ."""


@dataclass(frozen=True)
class Source:
    """Where a backbone came from: the format recognised, the path or name given, the sha256 of the file."""

    format: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Backbone:
    """A ResNet without its classifier.

    Attributes:
        tensors: float32 weights and BN statistics by torchvision name, in the order of the network.
        arch: the network, e.g. "resnet50" (see converters/arch.py).
        source: where the tensors were read.
        meta: what the file says of its training: method, label_ratio, epochs … where known.
    """

    tensors: dict[str, Tensor]
    arch: str
    source: Source
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone_id(self) -> str:
        """What identifies the pre-training but for its seed: a hash of ours, KIND:NAME of a library, or sha256."""
        if "backbone_id" in self.meta:
            return str(self.meta["backbone_id"])
        if self.source.path.startswith(f"{self.source.format}:"):  # KIND:NAME?seed=0
            name, _, query = self.source.path.partition("?")
            kept = "&".join(option for option in query.split("&") if option and not option.startswith("seed="))
            return name + f"?{kept}" * bool(kept)
        return f"sha256-{self.source.sha256}"

    @property
    def seed(self) -> int | None:
        """Seed of the pre-training, or of random weights; None where it is not known."""
        seed = self.meta.get("seed")
        return None if seed is None else int(seed)

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features: 512 or 2048."""
        return archs.feature_dim(self.arch)

    def build(self) -> nn.Module:
        """Return the network with these tensors, in eval mode: (N, 3, H, W) images to (N, feature_dim) features.

        `layer1 … layer4` are its stages. The tensors are copied: training it leaves the backbone as it is.
        """
        with archs.Unfilled():
            network = archs.build(self.arch)
        network.load_state_dict(self.tensors, strict=True)
        return network.eval()

    def compare(self, state: Mapping[str, Tensor], ignore: Callable[[str], bool] = lambda name: False) -> int:
        """Check that `state`, in torchvision names, holds exactly these tensors; return how many were compared.

        Args:
            state: the trunk of a built model; `converters.backbone_state` takes it out of any framework's model.
            ignore: says of a name whether it may be absent from `state`.

        Raises:
            VerificationError: names the tensors that are absent, left over or different.
        """
        absent = [name for name in self.tensors if name not in state and not ignore(name)]
        extra = [name for name in state if name not in self.tensors]
        both = [name for name in self.tensors if name in state]
        differ = [name for name in both if not torch.equal(state[name].detach().cpu(), self.tensors[name])]
        if absent or extra or differ:
            found = {"absent": absent, "left over": extra, "different": differ}
            told = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in found.items() if names)
            raise VerificationError(f"the built model does not hold {self.source.path} ({told})")
        return len(both)


def some(names: list[str], limit: int = 4) -> str:
    """Join the first names of a list for a message."""
    return ", ".join(names[:limit]) + (f", … {len(names) - limit} more" if len(names) > limit else "")


def is_counter(name: str) -> bool:
    """Say whether `name` is BN's step counter, which no forward pass reads and some formats leave out."""
    return name.endswith("num_batches_tracked")
