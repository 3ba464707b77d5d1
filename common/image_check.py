"""Look at every image of a set once, before it is used: can it be read, and is it the copy of another?"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from common.files import short_hash
from common.images import ImageSet, decode
from common.scan import WrongFilesError, scan_files

PART = 2**14  # bytes at the start and at the end of a file that are read
_START_AND_END = {
    "JPEG": (b"\xff\xd8", b"\xff\xd9"),
    "PNG": (b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"),
}


@dataclass(frozen=True)
class Checked:
    """What `check_images` has found.

    Args:
        wrong: index of each image that cannot be read -> reason.
        hashes: equal for files of equal content, N of them; "" of images in memory and where the file is wrong.
    """

    wrong: Mapping[int, str]
    hashes: Sequence[str]


def check_images(images: ImageSet, title: str, cache: Path | None = None) -> Checked:
    """Look at the start and the end of every file, in worker processes; an unchanged file is not opened again.

    A JPEG or PNG file is decoded only where its header or its end is not what it should be, other files always.

    Args:
        images: N of them.
        title: what they are, for the progress bar.
        cache: see `scan_files`.

    Raises:
        ValueError: a file is missing or may not be read by this user, which no allowance for broken images covers.
    """
    files = [(i, path) for i, path in enumerate(images.paths) if path is not None]
    wrong: dict[int, str] = {}
    try:
        results: Sequence[str | None] = scan_files([path for _, path in files], inspect_image, title, cache)
    except WrongFilesError as error:
        results, wrong = error.results, {files[i][0]: reason for i, reason in error.reasons.items()}
    closed = [i for i in wrong if not os.access(images.paths[i] or "", os.R_OK)]
    if closed:
        raise ValueError(f"{wrong[closed[0]]} ({len(closed)} of {len(images)} images cannot be opened)")
    hashes = [""] * len(images)
    for (i, _), result in zip(files, results, strict=True):
        hashes[i] = result or ""
    return Checked(wrong, hashes)


def inspect_image(path: Path) -> str:
    """Return a hash of an image file's size, start and end.

    Raises:
        CorruptImageError: it cannot be read.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(PART)
        file.seek(max(len(start), size - PART))
        end = file.read()
    if not _looks_whole(start, end or start):
        decode(path)
    return short_hash(f"{size}\0".encode() + start + end)


def _looks_whole(start: bytes, end: bytes) -> bool:
    """Return whether a file has the header and the end of a JPEG or PNG image."""
    if not any(start.startswith(first) and end.endswith(last) for first, last in _START_AND_END.values()):
        return False
    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(start), formats=list(_START_AND_END)):
            return True
    except Exception:  # noqa: BLE001  whatever is unusual is left to the decoder
        return False
