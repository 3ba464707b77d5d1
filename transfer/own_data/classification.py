"""What the record says about a user's labelled images: name, identity, and the overlaps that were accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from common.images import ImageSet, source_list, source_path
from common.seen import find_seen
from transfer.own_data.options import file_name
from transfer.own_data.overlap import find_overlap

PROTOCOLS = ("imagenet", "voc07")  # recipes of the literature begin so: their data are no data set of a user


def describe(options: Namespace, train: ImageSet, test: ImageSet, targets: Sequence[np.ndarray] = ()) -> dict[str, str]:
    """Return `data` and `data_identity` for the record of a user's data set, nothing for the project's.

    Args:
        options: of the command.
        train: training images.
        test: test images; the same object where one is left out.
        targets: several labels per image, where there are such.
    """
    recipe = options.recipe.stem if options.recipe else ""
    given = source_list(options.data)
    if recipe.startswith(PROTOCOLS) or any(source.startswith(("fashion", "voc07:")) for source in given):
        return {}
    parts = [train.identity, test.identity, *(hashlib.sha256(array.tobytes()).hexdigest() for array in targets)]
    identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    folder = source_path(given[0]).absolute()
    folder = folder.parent if folder.name.lower() == "train" else folder
    return {"data": file_name(options.data_name, folder), "data_identity": identity}


def overlaps(options: Namespace, checkpoint: str, train: ImageSet, test: ImageSet) -> dict[str, str]:
    """Return the overlaps for the record, of test images with training images and with those of the pre-training.

    Raises:
        ValueError: there are such images, and --allow-overlap is not given.
    """
    paths = [path for path in test.paths if path is not None]
    found: dict[str, Any] = {"pretraining_overlap": find_seen(Path(checkpoint), paths, options.allow_overlap)}
    if test is not train:
        bank = [path for path in train.paths if path is not None]
        found["overlap"], _ = find_overlap(bank, paths, options.allow_overlap)
    return {name: said for name, said in found.items() if said}
