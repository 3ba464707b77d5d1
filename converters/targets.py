"""Write a Backbone the way each framework reads it, with its settings in a second file where there are any."""

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters import arch as archs
from converters.backbone import MEAN255, STD255, Backbone, is_counter
from converters.formats import Rules
from converters.messages import literal

_AUTHOR = "unimoco-suite"  # any name but Caffe2, which would make detectron2 rename the keys
_PLAIN = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
_WIDE = {"wide_resnet50_2", "wide_resnet101_2"}
_RESNEXTS = {"resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"}

_TO_DETECTRON2: Rules = (
    (r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm."), (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^layer1\.", "res2."), (r"^layer2\.", "res3."), (r"^layer3\.", "res4."), (r"^layer4\.", "res5."),
    (r"\.downsample\.0\.", ".shortcut."), (r"\.downsample\.1\.", ".shortcut.norm."),
)  # fmt: skip
_TO_OPENMMLAB_DEEP: Rules = ((r"^conv1\.", "stem."), (r"^bn1\.", "stem.7."))


@dataclass(frozen=True)
class Target:
    """A framework to write for.

    Attributes:
        name: the value of --to.
        suffixes: kinds of file it reads, the default first.
        write: writes the tensors to a path, with a prefix before every key; returns how many.
        builds: returns whether the framework itself can build a network (a name in converters/arch.py).
        package: what must be installed to verify the file.
        loading: the line of Python that loads it, with {arch}, {file} and {settings} (string literals).
        settings: suffix of the settings file beside it, and a function of (arch, path, prefix) that returns its text.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Backbone, Path, str], int]
    builds: Callable[[str], bool]
    package: str
    loading: str
    settings: tuple[str, Callable[[str, Path, str], str]] | None = None

    def save(self, backbone: Backbone, path: Path, prefix: str = "") -> int:
        """Write `path` and the settings beside it; return the number of tensors in it.

        Raises:
            ValueError: the framework has no such network, the message names the layer; or the disk is full.
        """
        self.check(backbone)
        if self.settings:
            suffix, text = self.settings
            path.with_suffix(suffix).write_text(text(backbone.arch, path, prefix), encoding="utf-8")
        from safetensors import SafetensorError

        try:
            return self.write(backbone, path, prefix)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # the last two by torch and safetensors on a full disk
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise ValueError(f"{path.name} could not be written: {' '.join(str(reason).split())[:200]}") from error

    def usage(self, arch: str, path: Path) -> str:
        """Return the line of Python or configuration that loads the file."""
        plain = re.sub("_cifar(_pad2)?$", "", arch)
        beside = path.with_suffix(self.settings[0]) if self.settings else path
        return self.loading.format(arch=plain, file=literal(path), settings=literal(beside))

    def check(self, backbone: Backbone) -> None:
        """Raise a ValueError that names the layer which the framework's own networks do not have."""
        if self.builds(backbone.arch):
            return
        hint = ""
        if self.builds(archs.names(backbone.arch)[0]):  # then it is the stem
            stem = archs.parts(backbone.arch)[1]
            layers = [n for n, t in backbone.tensors.items() if n.startswith("conv1.") and t.ndim == 4]
            shortcuts = [n for n in backbone.tensors if re.fullmatch(r"layer\d\.0\.downsample\.1\.weight", n)]
            layers += shortcuts[:1] if stem.avg_down else []  # a BasicBlock network has none in layer1
            hint = "" if stem.pool else "; --to torchvision keeps it"
        else:
            layers = [name for name in backbone.tensors if re.fullmatch(r"layer3\.\d+\.conv2\.weight", name)][-1:]
        listed = ", ".join(f"{name} {tuple(backbone.tensors[name].shape)}" for name in layers)
        raise ValueError(f"{self.name} builds no {backbone.arch}: it has no layer for {listed}{hint}")


def _rename(backbone: Backbone, rules: Rules, prefix: str = "", counters: bool = True) -> dict[str, Tensor]:
    """Return the tensors under another framework's names, with or without BN's step counters."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in backbone.tensors.items():
        if is_counter(name) and not counters:
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[prefix + name] = tensor
    return tensors


def _origin(backbone: Backbone) -> dict[str, Any]:
    """Return what a converted file says of its origin: no path and no time, so that equal input gives equal bytes."""
    meta = {key: value for key, value in backbone.meta.items() if key != "backbone_id"}
    source = {"source_format": backbone.source.format, "source_sha256": backbone.source.sha256}
    return {**meta, "arch": backbone.arch, **source, "source_id": backbone.backbone_id}


def _write_tensors(backbone: Backbone, path: Path, prefix: str) -> int:
    tensors = _rename(backbone, (), prefix)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # Only one entry of metadata: safetensors writes several in random order, and the bytes would differ.
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        _torch_save(tensors, path)
    return len(tensors)


def _torch_save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch.save would store its name
        torch.save(content, file)


def _write_detectron2(backbone: Backbone, path: Path, prefix: str) -> int:
    arrays = {key: t.numpy() for key, t in _rename(backbone, _TO_DETECTRON2, prefix, counters=False).items()}
    content = {"model": arrays, "__author__": _AUTHOR, "matching_heuristics": True, "meta": _origin(backbone)}
    # Protocol 3 stores module names as plain text; numpy < 1.26 knows its core only under the older name.
    data = pickle.dumps(content, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(data)
    return len(arrays)


def _depth(arch: str) -> int:
    return int(re.findall(r"\d+", arch)[0])


def _detectron2_settings(arch: str, path: Path, prefix: str) -> str:
    stages, _ = archs.parts(arch)
    name = literal(path.name)  # detectron2 reads YAML that may run code: no line break may end the comment
    return f"""\
# The input and the network that {name} was trained for. Merge it over any detectron2 config:
#   cfg.merge_from_file({literal(path.stem + ".yaml")}); cfg.MODEL.WEIGHTS = {name}
VERSION: 2
INPUT:
  FORMAT: "RGB"
MODEL:
  PIXEL_MEAN: {list(MEAN255)}
  PIXEL_STD: {list(STD255)}
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {_depth(arch)}
    STRIDE_IN_1X1: False
    NUM_GROUPS: {stages.groups}
    WIDTH_PER_GROUP: {stages.width}
    RES2_OUT_CHANNELS: {256 if stages.bottleneck else 64}
"""


def _write_openmmlab(backbone: Backbone, path: Path, prefix: str) -> int:
    deep = "conv1.0.weight" in backbone.tensors
    tensors = _rename(backbone, _TO_OPENMMLAB_DEEP if deep else (), prefix)
    _torch_save({"meta": _origin(backbone), "state_dict": tensors}, path)
    return len(tensors)


_NOT_PRETRAINED = "    pretrained=None,  # mmseg's base configs name other weights\n"
_C4_HEAD = """\
# mmdet's C4 networks keep layer4 in the RoI head, which is random by default. For them:
#   cfg.model.roi_head.shared_head.update(cfg.shared_head)
shared_head = dict(type='ResLayer', depth={depth}, stage=3, style='pytorch', norm_eval=False, init_cfg=init_cfg)
"""


def mmdet_has_c4(arch: str) -> bool:
    """Return whether mmdet's C4 networks can hold layer4: their RoI head has no groups and no V1d shortcut."""
    stages, stem = archs.parts(arch)
    return stages.groups == 1 and not stem.avg_down


def _openmmlab_settings(arch: str, path: Path, prefix: str, mmseg: bool = True) -> str:
    stages, stem = archs.parts(arch)
    depth = _depth(arch)
    network = f"depth={depth}, style='pytorch'"
    if stages.groups > 1:
        network += f", groups={stages.groups}, base_width={stages.width}"
    if len(stem.widths) > 1:
        network += f", deep_stem=True, avg_down={stem.avg_down}, stem_channels={stem.widths[-1]}"
    kind = "ResNeXt" if stages.groups > 1 else "ResNet"
    head = _C4_HEAD.format(depth=depth) if mmdet_has_c4(arch) else ""
    wanted = f", prefix={literal(prefix)}" if prefix else ""
    # Not mmengine's {{ fileDirname }}: it is pasted into the code, where a folder's name could end the string.
    return f"""\
# The input and the network that {literal(path.name)} was trained for. Merge it over any OpenMMLab config:
#   cfg.merge_from_dict(Config.fromfile({literal(path.stem + ".py")}).to_dict())
# or put _base_ = 'that_config.py' at the top of this file and train with it.
__folder = (lambda: 0).__code__.co_filename.rpartition('/')[0]  # of this file
init_cfg = dict(type='Pretrained', checkpoint=__folder + {literal("/" + path.name)}{wanted})
model = dict(
    data_preprocessor=dict(mean={list(MEAN255)}, std={list(STD255)}, bgr_to_rgb=True),
{_NOT_PRETRAINED if mmseg else ""}\
    backbone=dict(type='{kind}', {network}, frozen_stages=-1, norm_eval=False, init_cfg=init_cfg),
)
{head}"""


def _torchvision_builds(arch: str) -> bool:
    from torchvision import models

    # A CIFAR stem replaces two layers of torchvision's network; arch.build() shows how.
    return re.sub("_cifar(_pad2)?$", "", arch) in models.list_models(models)


def _timm_builds(arch: str) -> bool:
    import timm

    return timm.is_model(arch)


def _openmmlab_builds(arch: str) -> bool:
    stages, stem = archs.names(arch)
    # Its ResNeXt ignores the width where there is one group, so it has no wide networks.
    return stages in _PLAIN | _RESNEXTS and stem in ("", "c", "d", "s")


_TARGETS = (
    Target(
        "detectron2", (".pkl",), _write_detectron2, lambda arch: arch in _PLAIN | _WIDE | _RESNEXTS, "detectron2",
        "cfg.merge_from_file({settings}); cfg.MODEL.WEIGHTS = {file}", (".yaml", _detectron2_settings),
    ),
    Target(
        "openmmlab", (".pth",), _write_openmmlab, _openmmlab_builds, "mmseg",
        "cfg.merge_from_dict(mmengine.Config.fromfile({settings}).to_dict())", (".py", _openmmlab_settings),
    ),
    Target(
        "mmdet", (".pth",), _write_openmmlab, _openmmlab_builds, "mmdet",
        "cfg.merge_from_dict(mmengine.Config.fromfile({settings}).to_dict())",
        (".py", partial(_openmmlab_settings, mmseg=False)),
    ),
    Target(
        "torchvision", (".pth", ".safetensors"), _write_tensors, _torchvision_builds, "torchvision",
        "m = torchvision.models.{arch}(); m.fc = torch.nn.Identity(); m.load_state_dict(torch.load({file}))",
    ),
    Target(
        "timm", (".safetensors", ".pth"), _write_tensors, _timm_builds, "timm",
        'timm.create_model("{arch}", num_classes=0, checkpoint_path={file})',
    ),
)  # fmt: skip
TARGETS = {target.name: target for target in _TARGETS}
