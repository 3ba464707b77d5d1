"""Image sets from folders, manifests and Fashion-MNIST.

A source is a path, alone or after its kind:

    /data/imagenet/train            class folders: one folder per class, images at any depth below it
    /data/photos                    a flat folder: images without labels (no sub-folder holds images)
    /data/list.tsv                  a manifest: one image per line, `path<TAB>label`; blank or -1 = unlabelled
    fashion:train, fashion:test     Fashion-MNIST, in the folder that the option `data.root` names
    folders:P, flat:P, manifest:P   path P with its kind given; flat: takes images at any depth

Several sources form one data set; classes of the same name are the same class.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torchvision

from common.files import write_atomically
from common.transforms import Image

UNLABELLED = -1
IDENTITY_FILES = 1024  # files of a data set that its identity reads
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# In the coded pixels a byte FF is followed by 00 or a restart marker (D0 ... D7); anything else opens a segment.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class CorruptImageError(ValueError):
    """An image file cannot be read."""


@dataclass(frozen=True)
class Entry:
    """One image of a source.

    Args:
        name: path relative to its source, "/"-separated; label lists refer to it.
        label: class name, or None.
        path: file, or None where the pixels are in memory.
        where: file and line, or folder, of the label: for error messages.
        pixels: (H, W) uint8, where they are in memory.
    """

    name: str
    label: str | None
    path: Path | None = None
    where: str = ""
    pixels: np.ndarray | None = None

    def read(self) -> Image:
        """Return the image as (H, W, 3) uint8 RGB."""
        if self.pixels is not None:
            return cv2.cvtColor(self.pixels, cv2.COLOR_GRAY2RGB)
        assert self.path is not None
        return decode(self.path)


@dataclass(frozen=True)
class ImageSet:
    """Images of one or more sources.

    Args:
        names: of the images, relative to their source, N of them.
        labels: (N,) int64, -1 = unlabelled.
        classes: class names; label i is classes[i].
        read: image index -> (H, W, 3) uint8 RGB; raises CorruptImageError.
        paths: their files, N of them, or empty where all are in memory.
    """

    names: list[str]
    labels: np.ndarray
    classes: list[str]
    read: Callable[[int], Image]
    paths: list[Path | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """Return the images of the given indices, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = self.read
        return ImageSet(
            [self.names[i] for i in chosen],
            self.labels[chosen],
            self.classes,
            lambda i: read(int(chosen[i])),
            [self.paths[i] for i in chosen] if self.paths else [],
        )

    @property
    def in_memory(self) -> bool:
        """Whether all pixels are in memory."""
        return not any(self.paths)

    @cached_property
    def identity(self) -> str:
        """A hash of the data set that does not depend on where it is stored.

        It covers the name and class of every image and the content of images: all pixels of a set in memory, else the
        bytes of up to 1,024 evenly spaced files. A file that cannot be read counts as empty.
        """
        classes = np.array([*self.classes, ""], dtype=object)[self.labels]  # the last, for label -1
        digest = hashlib.sha256("\0".join((*self.names, *classes)).encode(errors="surrogateescape"))
        count = len(self) if self.in_memory else min(len(self), IDENTITY_FILES)
        for i in np.linspace(0, len(self) - 1, count, dtype=np.int64).tolist():
            path = self.paths[i] if self.paths else None
            digest.update(_pixels(self.read(i)) if path is None else _file_bytes(path))
        return digest.hexdigest()[:16]


def _pixels(image: Image) -> bytes:
    return f"{image.shape}".encode() + image.tobytes()


def _file_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError:  # training skips such an image, too
        content = b""
    return f"{len(content)}\0".encode() + content


def load_images(sources: Iterable[str], root: str = "data", classes: str | None = None) -> ImageSet:
    """Read the lists of images (not yet the images) of all sources.

    Args:
        sources: see the head of this file.
        root: folder of Fashion-MNIST.
        classes: text file with one class name per line that fixes the class map; None: the sorted names found.

    Raises:
        ValueError: a source is missing, empty, ambiguous or malformed; or `classes` lacks a label.
    """
    entries = [entry for spec in sources for entry in _load_source(spec, root)]
    if not entries:
        raise ValueError("no images: name at least one source, e.g. --data.train /path/to/images")
    names = _class_names(entries, classes)
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([UNLABELLED if e.label is None else index[e.label] for e in entries], dtype=np.int64)
    paths = [e.path for e in entries]
    return ImageSet([e.name for e in entries], labels, names, lambda i: entries[i].read(), paths if any(paths) else [])


def decode(path: Path) -> Image:
    """Decode an image file to (H, W, 3) uint8 RGB. Like PIL and torchvision, ignore the EXIF orientation.

    Raises:
        CorruptImageError: the file is missing, empty, not an image, or a truncated JPEG.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptImageError(f"{path}: {error.strerror}") from error
    # OpenCV fills the missing part of a truncated JPEG with gray without reporting it.
    if data.startswith(_JPEG_START) and _ends_early(data):
        raise CorruptImageError(f"{path}: the JPEG ends early")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise CorruptImageError(f"{path}: {' '.join(str(error).split())}") from error
    if image is None:
        raise CorruptImageError(f"{path}: {'not an image that OpenCV reads' if data else 'empty file'}")
    return image


def save_png(image: Image, path: Path) -> None:
    """Write an image (H, W, 3) uint8 RGB atomically."""
    data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    write_atomically(path, lambda part: part.write_bytes(data))


def _ends_early(jpeg: bytes) -> bool:
    """Return whether the end marker is missing. Anything may follow it: phones append video clips."""
    if jpeg.endswith(_JPEG_END):
        return False
    position = len(_JPEG_START)
    while found := _JPEG_MARKER.search(jpeg, position):
        if found[0] == _JPEG_END:
            return False
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")  # skips a thumbnail
    return True


def text_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file.

    Raises:
        ValueError: it is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def _class_names(entries: list[Entry], classes: str | None) -> list[str]:
    found = sorted({e.label for e in entries if e.label is not None})
    if classes is None:
        return sorted(found, key=int) if all(name.isdecimal() for name in found) else found
    path = Path(classes)
    if not path.is_file():
        raise ValueError(f"data.classes={classes}: no such file; it must hold one class name per line")
    names = [line.strip() for line in text_lines(path) if line.strip()]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{classes}: class {twice!r} is listed twice")
    known = set(names)
    for entry in entries:
        if entry.label is not None and entry.label not in known:
            raise ValueError(f"{entry.where}: label {entry.label!r} is not in the class map {classes}")
    return names


def _load_source(spec: str, root: str) -> list[Entry]:
    kind, _, rest = spec.partition(":")
    if kind == "fashion":
        return _fashion(rest, root)
    if kind in ("folders", "flat", "manifest") and rest:
        path = Path(rest)
    else:
        path = Path(spec)
        kind = _guess_kind(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder (from data source {spec!r})")
    entries = {"folders": _class_folders, "flat": _flat, "manifest": _manifest}[kind](path)
    if not entries:
        raise ValueError(f"{path}: no images here (looked for {', '.join(EXTENSIONS)})")
    return entries


def _guess_kind(path: Path) -> str:
    if not path.is_dir():
        return "manifest"
    here = any(_is_image(name) for name in os.listdir(path))
    below = any(_images_below(entry) for entry in sorted(path.iterdir()) if entry.is_dir())
    if here and below:
        raise ValueError(
            f"{path}: images both here and in sub-folders; write flat:{path} (all unlabelled) or folders:{path}"
        )
    return "folders" if below else "flat"


def _class_folders(path: Path) -> list[Entry]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    return [
        Entry(f"{folder.name}/{name}", folder.name, folder / name, where=str(folder))
        for folder in folders
        for name in _images_below(folder)
    ]


def _flat(path: Path) -> list[Entry]:
    return [Entry(name, None, path / name) for name in _images_below(path)]


def _images_below(folder: Path) -> list[str]:
    """Return the image files at any depth, relative to the folder, sorted."""
    found = []
    for directory, _, files in os.walk(folder, followlinks=True):
        relative = Path(directory).relative_to(folder)
        found += [(relative / name).as_posix() for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _manifest(path: Path) -> list[Entry]:
    entries = []
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        name, _, label = line.partition("\t")
        where = f"{path}:{number}"
        if "\t" in label:
            raise ValueError(f"{where}: more than one tab; a line must be `path<TAB>label`")
        file = path.parent / name.strip()
        if not file.is_file():
            raise ValueError(f"{where}: no such image: {file}")
        label = label.strip()
        entries.append(Entry(name.strip(), None if label in ("", "-1") else label, file, where))
    return entries


def _fashion(split: str, root: str) -> list[Entry]:
    """Read Fashion-MNIST (Xiao et al., arXiv 1708.07747) through torchvision."""
    if split not in ("train", "test"):
        raise ValueError(f"fashion:{split}: use fashion:train or fashion:test")
    try:
        data = torchvision.datasets.FashionMNIST(root, train=split == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"no Fashion-MNIST in {root}/FashionMNIST/raw; get it with: bash setup.sh") from error
    images = enumerate(zip(data.targets.tolist(), data.data.numpy(), strict=True))
    return [Entry(f"{split}/{i:05d}", data.classes[label], pixels=pixels) for i, (label, pixels) in images]
