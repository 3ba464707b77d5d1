"""A conversion: read a checkpoint, write it for a framework, prove the file in the framework's own model."""

import filecmp
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from common.cli import STOPS, handling, printable
from common.extras import how_to_install
from common.files import write_atomically
from converters import sources
from converters.backbone import is_counter
from converters.formats import BY_NAME
from converters.messages import shorten
from converters.options import is_named
from converters.sources import DEFAULT, ReadOptions
from converters.targets import TARGETS, Target
from converters.verify import Check, installed, verify


@dataclass(frozen=True)
class Conversion:
    """What was read and written and how it was verified; str() is the report for the user.

    Attributes:
        reading: the backbone and what was done with every key.
        target: the framework written for.
        path: the converted file.
        written: number of tensors in it.
        checks: what was compared in each of the framework's models.
        unverified: why nothing was compared, or "".
    """

    reading: sources.Reading
    target: Target
    path: Path
    written: int
    checks: tuple[Check, ...]
    unverified: str

    def __str__(self) -> str:
        reading, backbone = self.reading, self.reading.backbone
        source, entry = backbone.source, BY_NAME.get(backbone.source.format)
        origin = f" ({entry.origin})" if entry else ""
        counters = [name for name in backbone.tensors if is_counter(name)]
        convs = sum(tensor.ndim == 4 for tensor in backbone.tensors.values())
        rows = [["read", len(backbone.tensors), f"{backbone.arch}: {convs} convolutions and their batch norms"]]
        rows += [[f"dropped, {rule}", len(keys), shorten(keys, 2)] for rule, keys in reading.dropped.items()]
        if self.written < len(backbone.tensors):
            rows.append(["not written, step counters", len(counters), shorten(counters, 2)])
        path = printable(str(self.path))
        rows.append(["written", self.written, path])
        dropped = sum(map(len, reading.dropped.values()))
        lines = [
            f"{printable(source.path)}: {source.format} format{origin}, {reading.weights} weights, {backbone.arch}, "
            f"sha256 {source.sha256[:12]}",
            tabulate(rows, headers=["", "tensors", "which"]),
            f"{reading.total} keys found, {reading.total - dropped} read, {dropped} dropped on purpose, "
            f"{self.written} tensors written to {path}",
            *(f"note: {note}" for note in reading.notes),
            *(f"verified: {check}" for check in self.checks),
            *([f"not verified: {self.unverified}"] if self.unverified else []),
            f"use: {self.target.usage(backbone.arch, self.path)}",
        ]
        return "\n".join(printable(line) for text in lines for line in text.split("\n"))


def convert(
    checkpoint: str,
    to: str,
    out: str | None = None,
    options: ReadOptions = DEFAULT,
    *,
    prefix: str = "",
    check: str = "auto",
    force: bool = False,
) -> Conversion:
    """Read `checkpoint`, write it for the framework `to`, and compare the framework's own model with it.

    Args:
        checkpoint: a file, or timm:NAME, torchvision:NAME, random:ARCH.
        to: a name in targets.TARGETS.
        out: the file to write; CKPT.TARGET.SUFFIX beside the checkpoint by default.
        options: how to read the checkpoint.
        prefix: written before every key, OpenMMLab only.
        check: "yes", "no", or "auto": where the framework is installed.
        force: overwrite files that differ.

    Raises:
        ValueError: a user's mistake; nothing is written.
        VerificationError: the framework's model is not equal; nothing is written.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to} is unknown; it takes {', '.join(TARGETS)}")
    target = TARGETS[to]
    path = Path(out) if out else _default_out(checkpoint, target)
    if path.suffix not in target.suffixes:
        raise ValueError(f"--out {path}: a {to} file ends in {' or '.join(target.suffixes)}")
    if path.exists() and Path(checkpoint).exists() and path.samefile(checkpoint):
        raise ValueError(f"--out {path} is the checkpoint itself; name another file")
    if prefix and to not in ("openmmlab", "mmdet"):
        raise ValueError(f"--prefix {prefix}: {to} wants bare keys; only OpenMMLab reads them with a prefix")
    unverified = "--verify no" if check == "no" else ""
    if not unverified and not installed(to):
        unverified = f"{target.package} is not installed; {how_to_install(target.package)}"
        if check == "yes":
            raise ValueError(f"--verify yes: {unverified}")
    reading = sources.read(checkpoint, options)
    with staging(path.parent, force) as folder:
        part = folder / path.name
        written = target.save(reading.backbone, part, prefix)
        checks = () if unverified else tuple(verify(reading.backbone, to, part))
    return Conversion(reading, target, path, written, checks, unverified)


def _default_out(checkpoint: str, target: Target) -> Path:
    path = Path(re.sub(r"[^\w.-]+", "-", checkpoint) if is_named(checkpoint) else checkpoint)
    stem = re.sub(r"(\.(pth|pt|pkl|tar|ckpt|bin|safetensors))+$", "", path.name)
    return path.parent / f"{stem}.{target.name}{target.suffixes[0]}"


@contextmanager
def staging(folder: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder; move the files written there to `folder` only if the block succeeds.

    Raises:
        ValueError: `folder` does not exist, or has a different file of the same name and `force` is False.
    """
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as name:
        yield Path(name)
        parts = sorted(Path(name).iterdir())
        for part in parts:
            path = folder / part.name
            if path.exists() and not force and not filecmp.cmp(part, path, shallow=False):
                raise ValueError(f"{path} exists and differs; --force overwrites it, --out names another")
        with handling(dict.fromkeys(STOPS, signal.SIG_IGN)):  # all of them or none
            for part in parts:
                part.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner reads
                write_atomically(folder / part.name, part.replace)


def _umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask
