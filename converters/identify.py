"""Is a backbone the network that its tensors' names and shapes suggest? Other networks have the same ones.

timm's resnetaa50 and resnetblur50 pool where resnet50 strides, Caffe-style ResNets have the stride in another layer,
and a 3×3 stem may have any padding. What else the file says is compared with the network that was inferred.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from converters import named
from converters.backbone import Backbone
from converters.contents import Content
from converters.formats import OWN, REFUSED_CONFIGS, Format
from converters.stand_ins import Inert

_CONFIGS = ("meta.cfg", "meta.config", "cfg", "config")  # mmengine, mmcv 1 and others
_LARGEST_CONFIG = 1_000_000  # characters or entries
_LEAVES = (str, bool, int, float, type(None))
# Where code bases keep the name of their network: timm, MoCo, DINO, PixPro, SupContrast, solo-learn.
_NAMES = (
    "arch", "architecture", "args.arch", "args.model", "args.backbone", "opt.arch", "opt.model", "config.arch",
    "hyper_parameters.arch", "hyper_parameters.backbone.name", "hyper_parameters.encoder",
)  # fmt: skip
# timm's networks with the same tensors and another computation; a test finds them anew.
RIVALS = {
    "resnet18": ("resnetblur18",),
    "resnet50": ("resnetaa50", "resnetblur50"),
    "resnet34d": ("resnetaa34d",),
    "resnet50d": ("resnetaa50d", "resnetblur50d"),
    "resnet101d": ("resnetaa101d", "resnetblur101d"),
}


def check_config(content: Content, entry: Format, forced: bool) -> tuple[str, ...]:
    """Refuse a file that says that it holds another network under the same names and shapes; return notes.

    Args:
        content: of the file.
        entry: its format.
        forced: whether the user named the format, which settles what is only the habit of a code base.

    Raises:
        ValueError: the stride is in another layer or the input is BGR, or this is usual for the file's origin.
    """
    path, notes = content.path, []
    for text in () if entry.name == OWN else map(_config_text, map(content.get, _CONFIGS)):
        for pattern, reason in REFUSED_CONFIGS:
            if match := re.search(pattern, text):
                raise ValueError(
                    f"{path}: its config says {match.group()}: {reason}, so it is another network than torchvision's"
                )
        if match := re.search(r"dilations['\"]?\s*[=:]\s*[(\[][^)\]]{0,20}[2-9][^)\]]{0,20}[)\]]", text):
            notes.append(f"its config says {match.group()}: these weights are read into the network without dilation")
    for dotted, pattern, reason in entry.refuse:
        value = content.get(dotted)
        if not forced and isinstance(value, str) and re.search(pattern, value):
            raise ValueError(
                f"{path}: {reason}, which is another network than torchvision's; if this one was "
                f"trained on RGB images with the stride in the 3×3 convolution, say so with --from {entry.name}"
            )
    if entry.name == "detectron2" and not content.get("__author__"):
        notes.append("the file does not state its input: RGB, stride in the 3×3 convolution are assumed")
    return tuple(notes)


def _config_text(config: Any) -> str:
    """Return a config, text or nested mappings and lists, as lines of key=value, what is shared once."""
    if isinstance(config, str):
        return config[:_LARGEST_CONFIG]
    lines: list[str] = []
    left, seen = [("", config)], set()
    while left and len(lines) < _LARGEST_CONFIG:  # no recursion: it may be nested at any depth
        key, value = left.pop()
        value = value.fields if isinstance(value, Inert) else value
        if isinstance(value, _LEAVES) or (
            isinstance(value, list | tuple) and all(isinstance(v, _LEAVES) for v in value)
        ):
            lines.append(f"{key}={value!r}")
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += [(str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else [(key, v) for v in value]
    return "\n".join(lines)


def choose_stem(content: Content, entry: Format, arch: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a network with a single 3×3 convolution as its stem, and notes.

    Args:
        content: of the file.
        entry: its format.
        arch: the network by its shapes, which do not show the padding: resnet18_cifar for any.

    Raises:
        ValueError: neither the file nor the code base decides the padding.
    """
    if not entry.cifar or (entry.cifar_entry and content.get(entry.cifar_entry) is None):
        raise ValueError(
            f"{content.path} has a 3×3 stem, whose padding nothing in the file shows: --arch {arch} reads it with "
            f"padding 1 (SimCLR, SupContrast, lightly), --arch {arch}_pad2 with padding 2 (solo-learn)"
        )
    if entry.name == OWN:
        return arch, ()
    arch = arch.removesuffix("_cifar") + entry.cifar
    other = arch.removesuffix("_pad2") if arch.endswith("_pad2") else f"{arch}_pad2"
    return arch, (
        f"the padding of the 3×3 stem is assumed, {arch}, as is usual in {entry.name} files; or --arch {other}",
    )


def check_network(content: Content, container: str, backbone: Backbone) -> tuple[str, ...]:
    """Compare a backbone with the network that the file names; return notes.

    Args:
        content: of the file.
        container: path to the mapping that the tensors were in.
        backbone: what was read.

    Raises:
        ValueError: the file names another network with the same tensors, or does not say which of several it is.
    """
    arch, path, modules = backbone.arch, content.path, content.modules(container)
    hint = f"if it is a plain {arch} all the same, --arch {arch} says so"
    if any(name == "maxpool.1" or name.endswith(".maxpool.1") for name in modules):
        raise ValueError(
            f"{path} has a second layer behind its max-pool (timm's resnetblur…), which {arch} has not; {hint}"
        )
    verdicts = {name: _is_network(name, backbone) for name in _stated(content)}
    if any(verdicts.values()):
        return ()
    if others := [name for name, same in verdicts.items() if same is False]:
        raise ValueError(f"{path} says that it is {others[0]}, its tensors are {arch}'s: {hint}")
    if not (rivals := RIVALS.get(arch)):
        return ()
    listed = " and ".join(rivals)
    if not modules and backbone.source.format in ("torchvision", "timm"):
        return (f"the file names no network: {arch} is assumed; timm's {listed} have its tensors too",)
    pooled = any(name.endswith("act1") for name in modules) and any("aa" in rival for rival in rivals)
    if pooled:
        raise ValueError(
            f"{path} was made by timm and names no network, and timm's {listed} have the same tensors as {arch}: {hint}"
        )
    return ()


def _stated(content: Content) -> Iterator[str]:
    for dotted in _NAMES:
        if isinstance(name := content.get(dotted), str) and len(name) < 100:
            yield name


def _is_network(name: str, backbone: Backbone) -> bool | None:
    """Return whether `name` is the backbone's network, and None where it may be no network's name."""
    name = name.partition(".")[0]  # timm's names end in .TAG
    plain = re.sub("_cifar(_pad2)?$", "", backbone.arch)
    if _normal(name) in (_normal(plain), _normal(backbone.arch)):
        return True
    import timm

    if not timm.is_model(name):
        return False if re.match(r"(wide_?)?resne[tx]", name.lower()) else None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated names
            network = timm.create_model(name, pretrained=False, num_classes=0)
        network.load_state_dict({key: t.clone() for key, t in backbone.tensors.items()}, strict=True, assign=True)
        named.check_features(network, backbone)
    except (RuntimeError, ValueError):  # other tensors, or other features
        return False
    return True


def _normal(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
