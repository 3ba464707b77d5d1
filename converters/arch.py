"""The ResNets that are known here, told apart by the shapes of their tensors.

Names are torchvision's where it has the network, timm's elsewhere: `resnet50d` has the deep stem of three 3×3
convolutions and average-pool shortcuts, `resnet50c` (OpenMMLab's V1c) the deep stem alone. `resnet18_cifar` has one
3×3 convolution of stride 1 and no max-pool. Tensors keep torchvision's names; what torchvision lacks keeps timm's:
`conv1.0 … conv1.6` in a deep stem, `downsample.1 / .2` behind an average pool.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Trunk:
    """Four stages of residual blocks, counted in `layers`."""

    bottleneck: bool
    layers: tuple[int, ...]
    groups: int = 1
    width: int = 64  # of one group in layer1's 3×3 convolution


@dataclass(frozen=True)
class Stem:
    """What stands before layer1, and how a shortcut goes down."""

    widths: tuple[int, ...] = (64,)  # output channels of each convolution
    kernel: int = 7
    padding: int = 3
    pool: bool = True  # a stride-2 convolution and a max-pool, as for ImageNet
    avg_down: bool = False


TRUNKS = {
    "resnet18": Trunk(False, (2, 2, 2, 2)),
    "resnet34": Trunk(False, (3, 4, 6, 3)),
    "resnet26": Trunk(True, (2, 2, 2, 2)),
    "resnet50": Trunk(True, (3, 4, 6, 3)),
    "resnet101": Trunk(True, (3, 4, 23, 3)),
    "resnet152": Trunk(True, (3, 8, 36, 3)),
    "resnet200": Trunk(True, (3, 24, 36, 3)),
    "wide_resnet50_2": Trunk(True, (3, 4, 6, 3), width=128),
    "wide_resnet101_2": Trunk(True, (3, 4, 23, 3), width=128),
    "resnext50_32x4d": Trunk(True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": Trunk(True, (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": Trunk(True, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Trunk(True, (3, 4, 23, 3), 64, 4),
}
# The key is what the name of the network gets: a letter goes behind the depth, the rest to the end.
STEMS = {
    "": Stem(),
    "c": Stem((32, 32, 64), 3, 1),
    "d": Stem((32, 32, 64), 3, 1, avg_down=True),
    "s": Stem((64, 64, 128), 3, 1),
    "t": Stem((24, 32, 64), 3, 1, avg_down=True),
    "_cifar": Stem(kernel=3, padding=1, pool=False),
    # solo-learn pads its 3×3 stem by 2; shapes do not show it, so only that format's entry asks for it.
    "_cifar_pad2": Stem(kernel=3, padding=2, pool=False),
}


def _named(trunk: str, stem: str) -> str:
    return trunk + stem if stem.startswith("_") else re.sub(r"(?<=\d)(?=_|$)", stem, trunk, count=1)


ARCHS = {_named(trunk, stem): (trunk, stem) for stem in STEMS for trunk in TRUNKS}


def names(arch: str) -> tuple[str, str]:
    """Return the names of trunk and stem of `arch`: ("resnet50", "d"); ValueError for an unknown one."""
    if arch not in ARCHS:
        raise ValueError(
            f"architecture {arch!r} is unknown; known are {', '.join(TRUNKS)}, "
            "with a stem of timm's letters c, d, s, t (resnet50d) or _cifar (resnet18_cifar)"
        )
    return ARCHS[arch]


def parts(arch: str) -> tuple[Trunk, Stem]:
    """Return the trunk and the stem of `arch`; ValueError for an unknown one."""
    trunk, stem = names(arch)
    return TRUNKS[trunk], STEMS[stem]


def build(arch: str) -> nn.Module:
    """Build `arch` with fresh weights and no classifier: (N, 3, H, W) images to (N, feature_dim) features.

    torchvision's ResNet where it can; timm's where the stem is deep.
    """
    trunk, stem = parts(arch)
    if len(stem.widths) > 1:
        from timm.models import resnet as timm_resnet

        return timm_resnet.ResNet(
            timm_resnet.Bottleneck if trunk.bottleneck else timm_resnet.BasicBlock,
            trunk.layers,
            num_classes=0,
            cardinality=trunk.groups,
            base_width=trunk.width,
            stem_width=stem.widths[1],
            stem_type="deep" if stem.widths[0] == stem.widths[1] else "deep_tiered",
            avg_down=stem.avg_down,
        )
    from torchvision.models import resnet

    block = resnet.Bottleneck if trunk.bottleneck else resnet.BasicBlock
    network = resnet.ResNet(block, list(trunk.layers), groups=trunk.groups, width_per_group=trunk.width)
    network.fc = nn.Identity()
    if not stem.pool:
        network.conv1 = nn.Conv2d(3, 64, stem.kernel, stride=1, padding=stem.padding, bias=False)
        network.maxpool = nn.Identity()
    return network


class Unfilled(TorchFunctionMode):
    """While it is on, random initialisation gives NaN instead: quicker, and a weight that is not loaded shows."""

    _RANDOM = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in self._RANDOM:
            return func(*args, **kwargs)
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).fill_(torch.nan)


@cache
def expected(arch: str) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of `arch`, in the order of the network."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(arch).state_dict().items()}


def feature_dim(arch: str) -> int:
    """Return the width of the pooled features: 512 or 2048."""
    return 2048 if parts(arch)[0].bottleneck else 512


def infer(shapes: Shapes, cifar: str = "_cifar") -> str:
    """Return the name of the network whose tensors have these `shapes`.

    Args:
        shapes: shape by torchvision name, without a classifier.
        cifar: the stem meant by one 3×3 convolution; shapes do not tell its padding.

    Raises:
        ValueError: no known network has them; the message says what was found.
    """
    deep = ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")
    convs = deep if deep[0] in shapes else ("conv1.weight",)
    wanted = ("layer1.0.conv1.weight", "layer1.0.conv2.weight", convs[0])
    if absent := [name for name in wanted if len(shapes.get(name, ())) != 4]:
        raise ValueError(f"not a ResNet: no 4-dimensional {absent[0]}")
    layers = tuple(len({name.split(".")[1] for name in shapes if name.startswith(f"layer{n}.")}) for n in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in shapes
    out_channels, in_channels = shapes["layer1.0.conv2.weight"][:2]
    groups = max(1, out_channels // max(1, in_channels))
    trunk = Trunk(bottleneck, layers, groups, out_channels // groups)
    names = ("conv1.weight",) if "conv1.weight" in shapes else ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")
    widths = tuple(shapes.get(name, (0,))[0] for name in names)
    avg_down = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    for arch in ARCHS:
        known, stem = parts(arch)
        same = (stem.widths, stem.kernel, stem.avg_down) == (widths, shapes[convs[0]][-1], avg_down)
        if known == trunk and same and (stem.pool or arch.endswith(cifar)):
            return arch
    raise ValueError(
        f"no known ResNet has {'Bottleneck' if bottleneck else 'BasicBlock'} × {layers}, "
        f"layer1.0.conv2.weight {shapes['layer1.0.conv2.weight']}, {convs[0]} {shapes[convs[0]]}"
    )
