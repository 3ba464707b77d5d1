"""Networks by name instead of a file: timm:NAME, torchvision:NAME, random:ARCH."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from converters import arch as archs
from converters.backbone import Backbone, Source

_TOLERANCE = 1e-4  # of features; float32 sums in another order


def read(path: str) -> Backbone:
    """Build the network that `path` names: KIND:NAME?option=value&option=value.

    Pre-trained weights have the library as their method. torchvision's are supervised; timm's may be anything: the
    tag in their name says what. Random weights have the method "random" and their seed in `meta`.

    Raises:
        ValueError: unknown name or option, the network is no ResNet, or its weights could not be downloaded.
    """
    kind, _, rest = path.partition(":")
    name, _, query = rest.partition("?")
    if not name:
        raise ValueError(f"{path} names no network; {kind}:resnet50 does")
    seed, pretrained = _parse_options(path, kind, query)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _BUILDERS[kind](name, pretrained, path)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        arch = name if kind == "random" else archs.infer(shapes)
        archs.check_whole(shapes, arch)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tensors = {key: state[key].detach().clone() for key in archs.expected(arch)}
    meta = {"method": kind, "name": name} if pretrained else {"method": "random", "name": name, "seed": seed}
    backbone = Backbone(tensors, arch, Source(kind, path, _digest(tensors)), meta)
    check_features(network, backbone)
    return backbone


def _parse_options(path: str, kind: str, query: str) -> tuple[int, bool]:
    """Return the seed and whether the weights are pre-trained."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"seed"} if kind == "random" else {"seed", "pretrained"}
    if unknown := set(options) - known:
        raise ValueError(f"{path}: option {min(unknown)!r} is unknown; {kind}: takes {', '.join(sorted(known))}")
    seed, pretrained = options.get("seed", "0"), options.get("pretrained", str(kind != "random")).lower()
    if not (seed.isascii() and seed.isdigit()):
        raise ValueError(f"{path}: seed={seed} is not a whole number")
    if pretrained not in ("true", "false"):
        raise ValueError(f"{path}: pretrained={pretrained} is neither true nor false")
    return int(seed), pretrained == "true"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_features(network: nn.Module, backbone: Backbone) -> None:
    """Raise ValueError where names and shapes fit but the network differs (blur pooling, other strides)."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        delta = float((backbone.build()(images) - network.eval()(images)).abs().max())
    if not delta <= _TOLERANCE:  # so that NaN fails as well
        raise ValueError(
            f"{backbone.source.path} has {backbone.arch}'s tensors and other features (they differ by {delta:.2g})"
        )


def _timm(name: str, pretrained: bool, path: str) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no {name!r}; timm.list_models('*resnet*') lists its ResNets")
    network = _download(lambda: timm.create_model(name, pretrained=pretrained, num_classes=0), path)
    if type(network).__name__ != "ResNet":
        raise ValueError(f"{path} is a {type(network).__name__}, not a ResNet")
    return network


def _torchvision(name: str, pretrained: bool, path: str) -> nn.Module:
    from torchvision import models

    known = models.list_models(models, include=["*resnet*", "*resnext*"])
    if name not in known:
        raise ValueError(f"torchvision has no ResNet {name!r}; it has {', '.join(known)}")
    weights = "DEFAULT" if pretrained else None
    network = _download(lambda: models.get_model(name, weights=weights, progress=False), path)
    network.fc = nn.Identity()
    return network


def _download(make: Callable[[], nn.Module], path: str) -> nn.Module:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each of its retries
    try:
        return make()
    except Exception as error:  # each hub client has its own errors for "no network", "no such tag", "no such file"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} could not be fetched ({type(error).__name__}: {reason}); "
            "download it elsewhere and give the file, or add ?pretrained=false"
        ) from error


_BUILDERS: dict[str, Callable[[str, bool, str], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "random": lambda name, pretrained, path: archs.build(name),
}
