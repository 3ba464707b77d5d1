"""Image sets from folders, manifests and Fashion-MNIST.

A source is a path, alone or after its kind:

    /data/imagenet/train            class folders: one folder per class, images at any depth below it
    /data/photos                    a flat folder: images without labels (no sub-folder holds images)
    /data/list.tsv                  a manifest: one image per line, `path<TAB>label`; blank or -1 = unlabelled
    /data/list.csv                  the same with a header, path,label
    fashion:train, fashion:test     Fashion-MNIST, in the folder that the option `data.root` names
    folders:P, flat:P, manifest:P   path P with its kind given; flat: takes images at any depth

Several sources form one data set; classes of the same name are the same class. `common/folders.py` says what is left
out of folders. In names of files and classes, bytes that are not UTF-8 become escapes, so that any file can hold them.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from common.files import listed_names, text_lines, write_atomically
from common.folders import EXTENSIONS, Walk, escaped, some, tell, walk
from common.manifests import find_file, read_rows
from common.strings import Paths, Strings
from common.transforms import Image

UNLABELLED = -1
KINDS = ("folders", "flat", "manifest")  # before the path of a source
IDENTITY_FILES = 1024  # files of a data set that its identity reads
# Parts of a data set, in lower case: folders of these names are no classes.
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# In the coded pixels a byte FF is followed by 00 or a restart marker (D0 ... D7); anything else opens a segment.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class CorruptImageError(ValueError):
    """An image file cannot be read.

    A DataLoader raises an error of its process again with the whole traceback as the message; its last line is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition("\n")[2].removeprefix(f"{__name__}.CorruptImageError: "))


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are loaded.

    Args:
        train: a source, or a list [A, B] of sources to mix: a folder of class folders, a flat folder, a manifest of
            `path<TAB>label` lines, or fashion:train.
        root: folder that holds Fashion-MNIST.
        classes: file with one class name per line that fixes the class map; default: the names found, sorted.
        workers: loader processes per rank; default: the cores of this process minus one, over the ranks of the machine.
        max_corrupt: fraction of the images that may be unreadable; 0 stops at the first.
    """

    train: list[str] | str = field(default_factory=list)
    root: str = "data"
    classes: str | None = None
    workers: int | None = None
    max_corrupt: float = 0.001

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: must be 0 (load in the training process) or more")
        if not 0 <= self.max_corrupt <= 1:
            raise ValueError(f"data.max_corrupt={self.max_corrupt}: must be a fraction between 0 and 1")

    @property
    def sources(self) -> list[str]:
        """`train` as a list."""
        return source_list(self.train)


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


@dataclass(frozen=True)
class ImageSet:
    """Images of one or more sources.

    Args:
        names: of the images, relative to their source, N of them.
        labels: (N,) int64, -1 = unlabelled.
        classes: class names; label i is classes[i].
        read: image index -> (H, W, 3) uint8 RGB; raises CorruptImageError.
        paths: their files, N of them, or empty where all are in memory.
        whole: the set that they were chosen from and their indices in it, (N,); None where they were not chosen.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: list[str]
    read: Callable[[int], Image]
    paths: Sequence[Path | None] = ()
    whole: tuple[ImageSet, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """Return the images of the given indices, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = self.read
        return ImageSet(
            Strings(self.names[i] for i in chosen),
            self.labels[chosen],
            self.classes,
            lambda i: read(int(chosen[i])),
            Paths(self.paths[i] for i in chosen) if self.paths else Paths(),
            (self, chosen),
        )

    def describe(self) -> str:
        """Return the number of images, and of classes with their first names and sizes."""
        count = np.bincount(self.labels[self.labels != UNLABELLED], minlength=len(self.classes))
        if not len(count):
            return f"{len(self)} images without labels"
        sizes = f"{count.min()}" if count.min() == count.max() else f"{count.min()} to {count.max()}"
        return f"{len(self)} images, {len(count)} classes ({some(self.classes)}), {sizes} images each"

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


def load_images(
    sources: Iterable[str], root: str = "data", classes: str | None = None, complete: bool = False
) -> ImageSet:
    """Read the lists of images (not yet the images) of all sources. What is left out of folders is reported on stderr.

    Args:
        sources: see the head of this file.
        root: folder of Fashion-MNIST.
        classes: text file with one class name per line that fixes the class map; None: the sorted names found.
        complete: whether a class folder without images is an error, in place of being reported.

    Raises:
        ValueError: a source is missing, empty, ambiguous or malformed; or `classes` lacks a label.
    """
    entries = [entry for spec in sources for entry in _load_source(spec, root, complete)]
    if not entries:
        raise ValueError("no images: name at least one source, e.g. --data.train /path/to/images")
    names = _class_names(entries, classes)
    index = {name: i for i, name in enumerate(names)}
    labels = np.array([UNLABELLED if e.label is None else index[e.label] for e in entries], dtype=np.int64)
    paths, pixels = Paths(e.path for e in entries), {i: e.pixels for i, e in enumerate(entries) if e.pixels is not None}
    read = partial(_read, paths, pixels)
    return ImageSet(Strings(e.name for e in entries), labels, names, read, paths if any(paths) else Paths())


def _read(paths: Sequence[Path | None], pixels: Mapping[int, np.ndarray], i: int) -> Image:
    """Return image i: (H, W, 3) uint8 RGB, from its file or from its gray pixels in memory."""
    path = paths[i]
    return cv2.cvtColor(pixels[i], cv2.COLOR_GRAY2RGB) if path is None else decode(path)


def decode(path: Path) -> Image:
    """Decode an image file to (H, W, 3) uint8 RGB. Like PIL and torchvision, ignore the EXIF orientation.

    Raises:
        CorruptImageError: the file is missing, empty, not an image, or a truncated JPEG.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptImageError(f"{escaped(str(path))}: {error.strerror}") from error
    name = escaped(str(path))
    # OpenCV fills the missing part of a truncated JPEG with gray without reporting it.
    if data.startswith(_JPEG_START) and _ends_early(data):
        raise CorruptImageError(f"{name}: the JPEG ends early")
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise CorruptImageError(f"{name}: {' '.join(str(error).split())}") from error
    if image is None:
        raise CorruptImageError(f"{name}: {'not an image that OpenCV reads' if data else 'empty file'}")
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


def _class_names(entries: list[Entry], classes: str | None) -> list[str]:
    found = sorted({e.label for e in entries if e.label is not None})
    if classes is None:
        return sorted(found, key=int) if all(name.isdecimal() for name in found) else found
    path = Path(classes)
    if not path.is_file():
        raise ValueError(f"data.classes={classes}: no such file; it must hold one class name per line")
    names = list(map(escaped, listed_names(path)))
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{classes}: class {twice!r} is listed twice")
    known = set(names)
    for entry in entries:
        if entry.label is not None and entry.label not in known:
            raise ValueError(f"{entry.where}: label {entry.label!r} is not in the class map {classes}")
    return names


def source_list(data: str | list[str]) -> list[str]:
    """Return one source, or several, as a list."""
    return [data] if isinstance(data, str) else [*data]


def source_path(source: str) -> Path:
    """Return the path in a source, without its kind."""
    kind, _, rest = source.partition(":")
    return Path(rest if kind in KINDS and rest else source)


def _load_source(spec: str, root: str, complete: bool) -> list[Entry]:
    kind, _, rest = spec.partition(":")
    if kind == "fashion":
        return _fashion(rest, root)
    given, path = kind if kind in KINDS and rest else None, source_path(spec)
    if not path.exists():
        raise ValueError(f"{path.absolute()}: no such file or folder (from data source {spec!r})")
    if given == "manifest" or (given is None and not path.is_dir()):
        entries = _manifest(path)
    else:
        entries = _folder(walk(path), given, complete)
    if not entries:
        raise ValueError(f"{path}: no images here (looked for {', '.join(EXTENSIONS)})")
    return entries


def _folder(found: Walk, kind: str | None, complete: bool) -> list[Entry]:
    """Return the images of a folder: of class folders, or without labels."""
    path, left_out = found.folder, found.left_out()
    below = sorted((name for name in found.images if "/" in name), key=lambda name: name.partition("/"))
    here = len(found.images) - len(below)
    if kind is None:
        _refuse_splits(found)
        if here and below:
            raise ValueError(
                f"{path}: images both here and in sub-folders; write flat:{path} (all unlabelled) or folders:{path}"
            )
    flat = kind == "flat" or not (kind or below)
    if not flat:
        _check_class_folders(found, below, complete)
        left_out += f"{', ' * bool(left_out)}{here} images beside the class folders" * bool(here)
    names = sorted(found.images) if flat else below
    if left_out:
        tell(f"{escaped(str(path))}: {len(names)} images; left out: {left_out}")
    if flat:
        return [Entry(escaped(name), None, path / name) for name in names]
    tops = {name.partition("/")[0] for name in names}
    classes = {top: (escaped(top), f"{path / top}") for top in tops}  # once each: a million images lie in a thousand
    return [
        Entry(escaped(name), label, path / name, where)
        for name in names
        for label, where in (classes[name.partition("/")[0]],)
    ]


def _refuse_splits(found: Walk) -> None:
    """Raise a ValueError where folders named train, val or test would be classes, alone or inside of each class."""
    inside: dict[str, list[str]] = {}
    for name in {os.path.dirname(image) for image in found.images}:
        parts = name.split("/") if name else []
        for depth, part in enumerate(parts[:2]):
            inside.setdefault("/".join(parts[:depth]), []).append(part)
    for parent, names in sorted(inside.items()):
        splits = sorted(name for name in set(names) if name.lower() in SPLITS)
        if len(splits) > 1 or (splits and not parent and len(set(names)) == 1):
            first = min(splits, key=lambda name: not name.lower().startswith("train"))
            raise ValueError(
                f"{found.folder / parent}: {', '.join(splits)} are parts of a data set and no classes: name "
                f"{found.folder / parent / first} (or write folders:{found.folder} if they are classes)"
            )


def _check_class_folders(found: Walk, images: list[str], complete: bool) -> None:
    """Refuse a folder that is in two classes; refuse or tell class folders without images; tell names that are alike.

    With `complete`, class folders without images are refused.
    """
    for path, first in found.again:
        if path.partition("/")[0] != first.partition("/")[0]:
            raise ValueError(
                f"{found.folder / path} and {found.folder / first} are one folder: its images would be in two classes"
            )
    filled = {name.partition("/")[0] for name in images}
    if empty := [top for top in found.tops if top not in filled]:
        message = f"{found.folder / empty[0]}: a class folder without images; fill it or remove it"
        if complete:
            raise ValueError(message)
        tell(f"{escaped(message)} ({len(empty)} of {len(found.tops)})")
    alike: dict[str, str] = {}
    for top in sorted(filled):
        other = alike.setdefault(unicodedata.normalize("NFC", top).casefold(), top)
        if other != top:
            tell(f"{escaped(str(found.folder))}: {other!r} and {top!r} are two classes; is one a slip of the other?")


def _manifest(path: Path) -> list[Entry]:
    entries = []
    for number, name, label in read_rows(path, text_lines(path)):
        name, file = find_file(path, number, name)
        known = None if label.strip() in ("", "-1") else escaped(label.strip())
        entries.append(Entry(escaped(name), known, file, f"{path}:{number}"))
    return entries


def _fashion(split: str, root: str) -> list[Entry]:
    from common import fashion_mnist  # here: torchvision takes seconds, and options are parsed without

    data = fashion_mnist.load(root, split)
    images = enumerate(zip(data.targets.tolist(), data.data.numpy(), strict=True))
    return [Entry(f"{split}/{i:05d}", data.classes[label], pixels=pixels) for i, (label, pixels) in images]
