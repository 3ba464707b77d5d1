"""Images with several labels, from CSV files: `path` and a column per class, 1 present, 0 absent, blank unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from common.files import text_lines
from common.folders import escaped
from common.images import UNLABELLED, ImageSet, decode
from common.manifests import LABELS, find_file, read_table
from transfer.own_data.options import hold_out

VALUES = {"1": 1, "0": 0, "": -1}  # present, absent, neither
Table = tuple[ImageSet, np.ndarray]  # N images and their targets, (N, C)


def is_table(data: str | list[str] | None) -> bool:
    """Return whether --data is a CSV file with a column per class."""
    if not isinstance(data, str) or not data.lower().endswith(".csv") or not Path(data).is_file():
        return False
    header, _ = read_table(Path(data), text_lines(Path(data))[:1])
    return len(header) > 2 and not any(name.lower() in LABELS for name in header)


def load(options: Namespace) -> tuple[Table, Table, list[str]]:
    """Read the training and the test images, and the names of the classes.

    Raises:
        ValueError: a file is malformed, or there are no test images.
    """
    images, targets, classes = read(Path(options.data))
    if options.val_fraction is not None:
        held = hold_out(sorted(images.names), options.val_fraction, options.split_seed)
        tested = np.array([name in held for name in images.names])
        train, test = (np.flatnonzero(part) for part in (~tested, tested))
        return (images.subset(train), targets[train]), (images.subset(test), targets[test]), classes
    test_images, test_targets, theirs = read(Path(options.test))
    if theirs != classes:
        raise ValueError(f"{options.test}: its columns are {', '.join(theirs)}, those of train {', '.join(classes)}")
    if both := {*map(str, images.paths)} & {*map(str, test_images.paths)}:
        raise ValueError(f"{options.test}: {len(both)} of its images are in {options.data}, e.g. {escaped(min(both))}")
    return (images, targets), (test_images, test_targets), classes


def read(path: Path) -> tuple[ImageSet, np.ndarray, list[str]]:
    """Return the images of a CSV file, their targets (N, C) and the names of the classes."""
    if not path.is_file():
        raise ValueError(f"{path.absolute()}: no such file")
    header, rows = read_table(path, text_lines(path))
    classes, names = header[1:], [row[0] for _, row in rows]
    if len(set(classes)) < len(classes) or not all(classes):
        raise ValueError(f"{path}: the header {','.join(header)[:80]!r} names a class twice, or not at all")
    if not rows or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise ValueError(f"{path}: {f'{twice} is listed twice' if rows else 'no images'}")
    for number, row in rows:
        if odd := [cell for cell in row[1:] if cell not in VALUES]:
            raise ValueError(f"{path}:{number}: {odd[0]!r}: must be 1 (present), 0 (absent) or blank (unknown)")
    paths = [find_file(path, number, row[0])[1] for number, row in rows]
    targets = np.array([[VALUES[cell] for cell in row[1:]] for _, row in rows], dtype=np.int64)
    no_label = np.full(len(rows), UNLABELLED, dtype=np.int64)
    images = ImageSet([escaped(name) for name in names], no_label, classes, lambda i: decode(paths[i]), [*paths])
    return images, targets, classes
