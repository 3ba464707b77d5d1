"""Networks by name instead of a file: timm:NAME, torchvision:NAME, random:ARCH."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from converters import arch as archs
from converters.backbone import Backbone

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Named:
    """A network made by its library, and its tensors without the classifier."""

    kind: str
    path: str
    network: nn.Module
    state: dict[str, Tensor]
    arch: str | None
    meta: dict[str, Any]

    def check(self, backbone: Backbone) -> None:
        """Compare features: names and shapes can fit where the network is another (blur pooling, other strides).

        Raises:
            ValueError: the network computes something else than a ResNet of these tensors does.
        """
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            delta = float((backbone.build()(images) - self.network.eval()(images)).abs().max())
        if not delta <= _TOLERANCE:
            raise ValueError(
                f"{self.path} has {backbone.arch}'s tensors and other features (they differ by {delta:.2g})"
            )


def is_named(path: str) -> bool:
    """Say whether `path` names a network and is no file."""
    return path.partition(":")[0] in _KINDS


def load(path: str) -> Named:
    """Make the network that `path` names: KIND:NAME?option=value&option=value.

    Raises:
        ValueError: unknown name or option, or its weights could not be fetched.
    """
    kind, _, rest = path.partition(":")
    name, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = {"random": {"seed"}}.get(kind, {"seed", "pretrained"})
    if unknown := set(options) - known:
        raise ValueError(f"{path}: option {min(unknown)!r} is unknown; {kind}: takes {', '.join(sorted(known))}")
    seed, pretrained = options.get("seed", "0"), options.get("pretrained", str(kind != "random")).lower()
    if not seed.isdigit():
        raise ValueError(f"{path}: seed={seed} is not a whole number")
    if pretrained not in ("true", "false"):
        raise ValueError(f"{path}: pretrained={pretrained} is neither true nor false")
    if not name:
        raise ValueError(f"{path} names no network; {kind}:resnet50 does")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        network = _KINDS[kind](name, pretrained == "true", path)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    # Pre-trained weights of these libraries are supervised; timm's others carry their method in the tag of the name.
    meta: dict[str, Any] = {"method": "random" if pretrained == "false" else kind, "name": name}
    if pretrained == "false":
        meta["seed"] = int(seed)
    return Named(kind, path, network, state, name if kind == "random" else None, meta)


def _timm(name: str, pretrained: bool, path: str) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no {name!r}; timm.list_models('*resnet*') lists its ResNets")
    network = _fetch(lambda: timm.create_model(name, pretrained=pretrained, num_classes=0), path)
    if type(network).__name__ != "ResNet":
        raise ValueError(f"{path} is a {type(network).__name__}, not a ResNet")
    return network


def _torchvision(name: str, pretrained: bool, path: str) -> nn.Module:
    from torchvision import models

    known = models.list_models(models, include=["*resnet*", "*resnext*"])
    if name not in known:
        raise ValueError(f"torchvision has no ResNet {name!r}; it has {', '.join(known)}")
    network = _fetch(lambda: models.get_model(name, weights="DEFAULT" if pretrained else None, progress=False), path)
    network.fc = nn.Identity()
    return network


def _random(name: str, pretrained: bool, path: str) -> nn.Module:
    return archs.build(name)


def _fetch(make: Callable[[], nn.Module], path: str) -> nn.Module:
    hub = logging.getLogger("huggingface_hub")  # warns of each of its retries
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return make()
    except Exception as error:  # each hub client has its own errors for «no network», «no such tag», «no such file»
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} could not be fetched ({type(error).__name__}: {reason}); "
            "download it elsewhere and give the file, or add ?pretrained=false"
        ) from error
    finally:
        hub.setLevel(level)


_KINDS: dict[str, Callable[[str, bool, str], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "random": _random,
}
