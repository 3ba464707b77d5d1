"""The one walk over folders of images: what is an image, what is left out and reported, what is an error.

Links to folders are followed, except to one that encloses the link; no folder is read twice. Hidden files, and what
systems and editors leave behind, are no images. A folder that cannot be read and a broken link are errors: images would
be missing without a word.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Images in formats that are not read.
OTHER_FORMATS = (
    *(".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".jfif", ".jpe", ".svg", ".ico", ".tga", ".psd", ".exr"),
    *(".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".npy", ".npz", ".dcm", ".pbm", ".pnm", ".apng"),
)
# Written by macOS, Synology, ext4, Windows and QNAP; compared in lower case.
LEFT_BEHIND = frozenset(
    ("__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information")
)
EXAMPLES = 3  # in a message
# Control characters, line separators, and what Python puts in the place of bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Walk:
    """What lies below a folder. Paths are relative to it and "/"-separated.

    Args:
        folder: where the walk began.
        images: files of images.
        folders: folders that were read.
        hidden: number of hidden files and folders, and of those that a system left behind, by name.
        other_formats: number of images in formats that are not read, by suffix.
        other_files: number of further files, by suffix.
        loops: links to a folder that encloses them.
        again: (path, first path) of each folder that was reached a second time.
    """

    folder: Path
    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    other_formats: Counter[str] = field(default_factory=Counter)
    other_files: Counter[str] = field(default_factory=Counter)
    loops: list[str] = field(default_factory=list)
    again: list[tuple[str, str]] = field(default_factory=list)

    @property
    def tops(self) -> list[str]:
        """The folders directly below, sorted."""
        return sorted(name for name in self.folders if "/" not in name)

    def left_out(self) -> str:
        """Return what was left out, as a part of a line; empty where nothing was."""
        links = [*self.loops, *(path for path, _ in self.again)]
        parts = (
            _counts(self.hidden, "hidden or left behind by a system"),
            _counts(self.other_formats, "images in a format that is not read"),
            _counts(self.other_files, "files that are no images"),
            f"{len(links)} links to folders that are read anyway ({some(links)})" if links else "",
        )
        return ", ".join(filter(None, parts))


def walk(folder: Path) -> Walk:
    """Find the images below a folder, at any depth. Folders are read before links to folders.

    Raises:
        ValueError: a folder cannot be read, or a link is broken; names it and the fix.
    """
    found, root = Walk(folder), os.path.realpath(folder)
    seen: dict[str, str] = {}  # real path of a folder that was read -> path
    folders, links = deque([("", root)]), deque[tuple[str, str]]()
    while folders or links:
        name, real = folders.popleft() if folders else links.popleft()
        if real in seen:
            found.again.append((name, seen[real]))
            continue
        seen[real] = name
        found.folders += [name] * bool(name)
        below, linked = _read(folder, name, found)
        folders += [(path, os.path.join(real, os.path.basename(path))) for path in below]
        for path in linked:
            target = os.path.realpath(folder / path)
            if _encloses(target, root) or _encloses(target, real):
                found.loops.append(path)
            else:
                links.append((path, target))
    return found


def _read(root: Path, name: str, found: Walk) -> tuple[list[str], list[str]]:
    """Sort the entries of one folder into `found`; return the folders in it and the links to folders, sorted."""
    below, linked, path = [], [], os.path.join(root, name)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                path, inner = entry.path, os.path.join(name, entry.name)
                if entry.name.startswith(".") or entry.name.lower() in LEFT_BEHIND:
                    found.hidden[entry.name] += 1
                elif entry.is_dir(follow_symlinks=False):
                    below.append(inner)
                elif entry.is_symlink() and entry.stat() and entry.is_dir():  # stat raises where the link is broken
                    linked.append(inner)
                elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                    found.images.append(inner)
                else:
                    suffix = os.path.splitext(entry.name)[1].lower()
                    (found.other_formats if suffix in OTHER_FORMATS else found.other_files)[suffix or "no suffix"] += 1
    except OSError as error:
        link = os.path.islink(path) and not os.path.exists(path)
        what = f"a link to {os.readlink(path)} that cannot be followed" if link else "cannot be read"
        raise ValueError(
            f"{path}: {what} ({error.strerror}): images would be missing; mend it, or move it away"
        ) from error
    return sorted(below), sorted(linked)


def _encloses(folder: str, path: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def escaped(name: str) -> str:
    """Return a file name as text on one line: bytes that are not UTF-8 and control characters become escapes.

    It identifies the file in lists and records; `common.cli.printable` escapes all that is invisible, for a terminal.

    >>> escaped("caf\\udce9\\n.png")
    'caf\\\\xe9\\\\n.png'
    """
    return _UNPRINTABLE.sub(lambda found: escape(found[0]), name)


def escape(character: str) -> str:
    """Return a character as an escape: one that stands for a byte that is not UTF-8 (PEP 383) as this byte."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def some(names: Sequence[str]) -> str:
    """Return the first names, and whether there are more."""
    return ", ".join(map(escaped, names[:EXAMPLES])) + ", ..." * (len(names) > EXAMPLES)


def _counts(counts: Counter[str], what: str) -> str:
    listed = some([f"{name} {n}" for name, n in counts.most_common(EXAMPLES + 1)])
    return f"{counts.total()} {what} ({listed})" if counts else ""


@functools.cache
def tell(text: str) -> None:
    """Print a line on stderr, on rank 0, once in a process however often a data set is read."""
    from common.distributed import rank  # here: torch takes a second, and options are parsed without

    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
