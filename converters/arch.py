"""The ResNets that are supported, recognised by the shapes of their tensors.

Names are torchvision's where it has the network, timm's elsewhere: `resnet50d` has the deep stem of three 3×3
convolutions and average-pool shortcuts, `resnet50c` (OpenMMLab's V1c) the deep stem alone. `resnet18_cifar` has one
3×3 convolution of stride 1 and no max-pool. Tensors keep torchvision's names; what torchvision lacks keeps timm's:
`conv1.0 … conv1.6` in a deep stem, `downsample.1 / .2` behind an average pool.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from converters.messages import summarize

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stages:
    """The four stages of residual blocks."""

    bottleneck: bool
    layers: tuple[int, ...]  # number of blocks in each stage
    groups: int = 1
    width: int = 64  # channels of one group in layer1's 3×3 convolution


@dataclass(frozen=True)
class Stem:
    """The layers before layer1, and how shortcuts downsample."""

    widths: tuple[int, ...] = (64,)  # output channels of each convolution
    kernel: int = 7
    padding: int = 3
    pool: bool = True  # a stride-2 convolution and a max-pool, as for ImageNet
    avg_down: bool = False  # shortcuts downsample by an average pool


STAGES = {
    "resnet18": Stages(False, (2, 2, 2, 2)),
    "resnet34": Stages(False, (3, 4, 6, 3)),
    "resnet26": Stages(True, (2, 2, 2, 2)),
    "resnet50": Stages(True, (3, 4, 6, 3)),
    "resnet101": Stages(True, (3, 4, 23, 3)),
    "resnet152": Stages(True, (3, 8, 36, 3)),
    "resnet200": Stages(True, (3, 24, 36, 3)),
    "wide_resnet50_2": Stages(True, (3, 4, 6, 3), width=128),
    "wide_resnet101_2": Stages(True, (3, 4, 23, 3), width=128),
    "resnext50_32x4d": Stages(True, (3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": Stages(True, (3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": Stages(True, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Stages(True, (3, 4, 23, 3), 64, 4),
}
# By suffix of the network's name. A letter follows the depth (resnext50d_32x4d), "_cifar" ends the name.
STEMS = {
    "": Stem(),
    "c": Stem((32, 32, 64), 3, 1),
    "d": Stem((32, 32, 64), 3, 1, avg_down=True),
    "s": Stem((64, 64, 128), 3, 1),
    "t": Stem((24, 32, 64), 3, 1, avg_down=True),
    "_cifar": Stem(kernel=3, padding=1, pool=False),
    # solo-learn pads its 3×3 stem by 2. Shapes do not show it, so only that format's entry asks for this stem.
    "_cifar_pad2": Stem(kernel=3, padding=2, pool=False),
}
_DEEP_STEM = ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")


def _join(stages: str, stem: str) -> str:
    return stages + stem if stem.startswith("_") else re.sub(r"(?<=\d)(?=_|$)", stem, stages, count=1)


ARCHS = {_join(stages, stem): (stages, stem) for stem in STEMS for stages in STAGES}


def names(arch: str) -> tuple[str, str]:
    """Return the keys of `arch` in STAGES and STEMS, e.g. ("resnet50", "d").

    Raises:
        ValueError: unknown architecture.
    """
    if arch not in ARCHS:
        raise ValueError(
            f"architecture {arch!r} is unknown; known are {', '.join(STAGES)}, "
            "with a stem of timm's letters c, d, s, t (resnet50d) or _cifar (resnet18_cifar)"
        )
    return ARCHS[arch]


def parts(arch: str) -> tuple[Stages, Stem]:
    """Return the stages and the stem of `arch`; raise ValueError for an unknown one."""
    stages, stem = names(arch)
    return STAGES[stages], STEMS[stem]


def build(arch: str) -> nn.Module:
    """Build `arch` with random weights and no classifier: (N, 3, H, W) images to (N, feature_dim) features.

    The network is torchvision's, or timm's where the stem is deep.
    """
    stages, stem = parts(arch)
    if len(stem.widths) > 1:
        from timm.models import resnet as timm_resnet

        return timm_resnet.ResNet(
            timm_resnet.Bottleneck if stages.bottleneck else timm_resnet.BasicBlock,
            stages.layers,
            num_classes=0,
            cardinality=stages.groups,
            base_width=stages.width,
            stem_width=stem.widths[1],
            stem_type="deep" if stem.widths[0] == stem.widths[1] else "deep_tiered",
            avg_down=stem.avg_down,
        )
    from torchvision.models import resnet

    block = resnet.Bottleneck if stages.bottleneck else resnet.BasicBlock
    network = resnet.ResNet(block, list(stages.layers), groups=stages.groups, width_per_group=stages.width)
    network.fc = nn.Identity()
    if not stem.pool:
        network.conv1 = nn.Conv2d(3, 64, stem.kernel, stride=1, padding=stem.padding, bias=False)
        network.maxpool = nn.Identity()
    return network


@cache
def expected(arch: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of `arch` by its name, in the order of the network."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(arch).state_dict().items()}


def feature_dim(arch: str) -> int:
    """Return the width of the pooled features: 512 or 2048."""
    return 2048 if parts(arch)[0].bottleneck else 512


def infer(shapes: Shapes, cifar: str = "_cifar") -> str:
    """Return the name of the network whose tensors have these `shapes`.

    Args:
        shapes: shape by torchvision name, without a classifier.
        cifar: the stem that a single 3×3 convolution means; shapes do not show its padding.

    Raises:
        ValueError: no known network has these shapes; the message says what was found.
    """
    convs = _DEEP_STEM if _DEEP_STEM[0] in shapes else ("conv1.weight",)
    for name in ("layer1.0.conv1.weight", "layer1.0.conv2.weight", convs[0]):
        if len(shapes.get(name, ())) != 4:
            raise ValueError(f"not a ResNet: no 4-dimensional {name}")
    layers = tuple(len({name.split(".")[1] for name in shapes if name.startswith(f"layer{n}.")}) for n in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in shapes
    out_channels, in_channels = shapes["layer1.0.conv2.weight"][:2]
    groups = max(1, out_channels // max(1, in_channels))
    found = Stages(bottleneck, layers, groups, out_channels // groups)
    widths = tuple(shapes.get(name, (0,))[0] for name in convs)
    avg_down = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    for arch in ARCHS:
        stages, stem = parts(arch)
        same = (stem.widths, stem.kernel, stem.avg_down) == (widths, shapes[convs[0]][-1], avg_down)
        if stages == found and same and (stem.pool or arch.endswith(cifar)):
            return arch
    raise ValueError(
        f"no known ResNet has {'Bottleneck' if bottleneck else 'BasicBlock'} × {layers}, "
        f"layer1.0.conv2.weight {shapes['layer1.0.conv2.weight']}, {convs[0]} {shapes[convs[0]]}"
    )


def check_whole(shapes: Shapes, arch: str) -> None:
    """Raise ValueError unless `shapes` are those of `arch`, name by name."""
    want = expected(arch)
    problems = {
        "missing": [name for name in want if name not in shapes],
        "left over": [name for name in shapes if name not in want],
        "of another shape": [
            f"{name} has shape {shapes[name]}, not {shape}"
            for name, shape in want.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    if found := summarize(problems):
        raise ValueError(f"not one whole {arch}: {found}")
