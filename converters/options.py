"""Options that say how a checkpoint is read and for what it is written; without the packages that do it."""

import re
from pathlib import Path

from jsonargparse import ArgumentParser

from converters.messages import shorten

TARGETS = ("detectron2", "openmmlab", "mmdet", "torchvision", "timm")  # those of converters.targets
NAMED = ("timm", "torchvision", "random")  # kinds of networks without a file: those of converters.named


def add_reading_options(p: ArgumentParser) -> None:
    """Add the options that say which weights of a checkpoint are read, and into which network."""
    p.add_argument(
        "--weights", type=str,
        help="which weights of a checkpoint that holds several sets: ema or model, query or key, student or teacher, "
        "online or momentum; by default those that its authors transfer",
    )  # fmt: skip
    p.add_argument("--arch", type=str, help="the network, where the checkpoint does not say which of several it is")


def is_named(path: str) -> bool:
    """Return True if `path` names a network, False for a file."""
    return path.partition(":")[0] in NAMED


def require_file(path: Path) -> None:
    """Raise a ValueError where there is no such file."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())
        inside.sort(key=lambda name: not re.search(r"\.(pth|pt|ckpt|tar|pkl|safetensors)$", name))
        raise ValueError(f"{path} is a directory, give one of its files" + (f": {shorten(inside)}" if inside else ""))
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; a named network is written timm:NAME, torchvision:NAME or random:ARCH"
        )


def require_source(source: str) -> None:
    """Raise a ValueError where a checkpoint is neither a file nor named."""
    if not is_named(source):
        require_file(Path(source))
