"""The annotations of a file in COCO's format as columns, and what can be wrong with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from common.scan import in_workers
from transfer.detection.evaluation import mask_area

# Flaws in at most this fraction of the annotations are noted: COCO's train2017 has two boxes without height.
RARE = 1e-3
TOLERANCE = 1.0  # pixels that a box or a mask may reach beyond its image
DRAWN = 1000  # masks that are drawn together

Row = dict[str, Any]


@dataclass(frozen=True)
class Needs:
    """What a task needs of an annotation file.

    Attributes:
        test: whether it is scored; else it is trained on.
        kinds: of bbox, segm and keypoints.
        classes: number of classes.
        categories: (id, name) of each class in order; empty: any.
        polygons: whether masks must be polygons, which training with INPUT.MASK_FORMAT polygon needs.
        lvis: whether it is evaluated as LVIS is.
        limit: most detections per image.
    """

    test: bool
    kinds: tuple[str, ...]
    classes: int
    categories: tuple[tuple[int, str], ...] = ()
    polygons: bool = False
    lvis: bool = False
    limit: int = 100


def column(file: Path, section: str, rows: Sequence[Row], key: str, kind: type) -> list[Any]:
    """Return a key of every row; raise a ValueError where it is missing or of another type."""
    values = [row.get(key) for row in rows]
    for number, value in enumerate(values):
        if type(value) is not kind:
            which = f"number {number + 1}" if key == "id" else f"{rows[number].get('id')!r}"
            lacks = f"has no {key}" if value is None else f"has the {key} {value!r}"
            raise ValueError(f"{file}: {section} {which} {lacks}: COCO's format has {_WORDS[kind]} there")
    return values


_WORDS = {int: "an integer", str: "a text", list: "a list of numbers"}


def unique(file: Path, section: str, key: str, values: Sequence[Any]) -> None:
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise ValueError(f"{file}: {count} {section} have the {key} {value!r}: each needs its own")


class Annotations:
    """The annotations of a file as columns, to find what is wrong with them.

    Attributes:
        boxes: (N, 4) left, top, width and height.
        owners: (N,) index of the image.
        categories: (N,) category ids.
        crowd: (N,) whether it marks a group, which is neither trained on nor to be found.
        notes: flaws that are rare, in words.
    """

    def __init__(self, file: Path, content: dict[str, list[Row]], needs: Needs) -> None:
        self.file, self.needs, self.notes = file, needs, list[str]()
        self.rows = rows = content["annotations"]
        self.ids = column(file, "annotations", rows, "id", int)
        unique(file, "annotations", "id", self.ids)
        columns = {key: column(file, "annotations", rows, key, int) for key in ("image_id", "category_id")}
        self.categories = np.array(columns["category_id"], dtype=np.int64)
        self.images = {image["id"]: image for image in content["images"]}
        for key, section, mend in (("image_id", "images", "image"), ("category_id", "categories", "category")):
            known = {row["id"] for row in content[section]}
            unknown = np.array([value not in known for value in columns[key]], dtype=bool)
            self.refuse(unknown, f'has a {key} that is not under "{section}"', f"add the {mend}, or remove it")
        crowd = [row.get("iscrowd", 0) for row in rows]
        self.refuse(np.array([c not in (0, 1) for c in crowd]), "has an iscrowd other than 0 and 1", "correct it")
        self.crowd = np.array(crowd, dtype=bool)
        indices = {image["id"]: i for i, image in enumerate(content["images"])}
        self.owners = np.array([indices[i] for i in columns["image_id"]], dtype=int)
        sizes = [(image["width"], image["height"]) for image in content["images"]]
        self.sizes = np.array(sizes, dtype=float).reshape(-1, 2)[self.owners]

    def refuse(self, wrong: ArrayLike, what: str, mend: str, rare: bool = False) -> np.ndarray:
        """Raise a ValueError that names the first of the wrong annotations; return which are not wrong.

        Args:
            wrong: (N,) bool.
            what: is wrong with them.
            mend: how to mend them.
            rare: note flaws in at most RARE of the annotations instead.
        """
        wrong = np.asarray(wrong, dtype=bool)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            row, count = self.rows[first], int(wrong.sum())
            image = self.images.get(row["image_id"], {}).get("file_name", f"image {row['image_id']}")
            more = f", as {count - 1:,} others do" * (count > 1)
            said = f"annotation {self.ids[first]} ({image}, bbox {str(row.get('bbox'))[:60]}) {what}{more}"
            if not rare or count > RARE * len(wrong):
                raise ValueError(f"{self.file}: {said}: {mend}")
            self.notes.append(said)
        return ~wrong

    def check(self) -> np.ndarray:
        """Check boxes, areas, masks and keypoints; return which annotations are sound, (N,) bool."""
        ignored = np.array([bool(row.get("ignore")) for row in self.rows], dtype=bool)
        self.refuse(ignored, "has `ignore`, which COCO's evaluation does not know", "write iscrowd 1, or remove it")
        kept = self._check_boxes()
        if self.needs.test:
            self._check_areas()
        if "segm" in self.needs.kinds:
            kept &= self._check_masks()
        if "keypoints" in self.needs.kinds:
            self._check_keypoints()
        return kept

    def crowded(self) -> list[str]:
        """Return, in words, how many images have more objects than a detector may find."""
        found = Counter(row["image_id"] for row in compress(self.rows, ~self.crowd))
        image, most = found.most_common(1)[0]
        if most <= self.needs.limit:
            return []
        name, count = self.images[image].get("file_name", image), sum(n > self.needs.limit for n in found.values())
        return [
            f"{count:,} images have more objects than the {self.needs.limit} detections of TEST.DETECTIONS_PER_IMAGE, "
            f"{name} {most}: no detector finds them all"
        ]

    def _check_boxes(self) -> np.ndarray:
        self.boxes = self._numbers(
            "bbox", 4, "bbox of four finite numbers", "write [left, top, width, height] in pixels"
        )
        ends = self.boxes[:, :2] + self.boxes[:, 2:]
        order = "boxes are [left, top, width, height], not [left, top, right, bottom]"
        self.refuse((self.boxes[:, 2:] < 0).any(1), "has a negative width or height", order)
        flat = (self.boxes[:, 2:] == 0).any(1)
        what = "has a bbox without width or height, which is not trained on and which no detection matches"
        kept = self.refuse(flat, what, "remove it", rare=True)
        outside = np.concatenate([self.boxes[:, :2] < -TOLERANCE, ends > self.sizes + TOLERANCE], 1).any(1)
        mend = f"{order}; cut it at the image's edges"
        return kept & self.refuse(outside, "reaches beyond its image", mend, rare=True)

    def _numbers(self, key: str, length: int, what: str, mend: str) -> np.ndarray:
        """Return a key of every row as an (N, length) array; refuse rows where it is no list of so many numbers."""
        given: list[Any] = [row.get(key) for row in self.rows]
        wrong = np.array([type(values) is not list or len(values) != length for values in given], dtype=bool)
        self.refuse(wrong, f"has no {what}", mend)
        values = _floats(chain.from_iterable(given))
        if values is None:
            wrong = np.array([_floats(values) is None for values in given], dtype=bool)
            self.refuse(wrong, f"has no {what}", mend)
            raise AssertionError("numbers are wrong together and right one by one")
        return values.reshape(-1, length)

    def _check_areas(self) -> None:
        given = [row.get("area", math.inf) for row in self.rows]
        wrong = np.array([type(a) not in (int, float) or math.isnan(a) or a < 0 for a in given], dtype=bool)
        mend = "remove `area`, and it is computed from masks or boxes"
        self.refuse(wrong, "has an `area` that is no number of pixels", mend)
        areas, within = np.array(given, dtype=float), self.boxes[:, 2:].prod(1)
        self.refuse((areas == 0) & (within >= 1), "has the area 0, so that it would count as small", mend, rare=True)
        larger = np.isfinite(areas) & (areas > 1.5 * within + 100) & ~self.crowd
        self.refuse(larger, "has an `area` larger than its bbox, so that its size would be wrong", mend, rare=True)

    def _check_masks(self) -> np.ndarray:
        given: list[Any] = [row.get("segmentation") for row in self.rows]
        none = np.array([not segment for segment in given], dtype=bool)
        self.refuse(none, "has no segmentation, and the task predicts masks", "add it, or set MODEL.MASK_ON False")
        encoded = np.array([type(segment) is dict for segment in given], dtype=bool)
        broken = np.zeros(len(given), dtype=bool)
        broken[encoded] = [not is_rle(given[i], *self.sizes[i]) for i in np.flatnonzero(encoded)]
        self.refuse(broken, "has an RLE that does not cover its image", 'write {"size": [height, width], "counts": …}')
        if self.needs.polygons:
            wanted = "has RLE where training with INPUT.MASK_FORMAT polygon wants polygons"
            self.refuse(encoded & ~self.crowd, wanted, "add INPUT.MASK_FORMAT bitmask to the command")
        kept, polygons = self._check_polygons(given, ~encoded)
        segments = {int(i): given[i] for i in np.flatnonzero(encoded)}
        work = partial(_mask_areas, segments, polygons, self.sizes.astype(int), kept)
        items = [range(i, min(i + DRAWN, len(given))) for i in range(0, len(given), DRAWN)]
        drawn = np.concatenate(in_workers(work, items, f"masks of {self.file.name}", 8, "part"))
        kept &= self.refuse(kept & (drawn == 0), "has a mask that covers no pixel", "remove it", rare=True)
        if self.needs.test:
            area = np.array([row.get("area", drawn[i]) for i, row in enumerate(self.rows)], dtype=float)
            differ = kept & ~self.crowd & ((area > 2 * drawn + 100) | (drawn > 2 * area + 100))
            what = "has an `area` that is not that of its mask, so that its size would be wrong"
            self.refuse(differ, what, "remove `area`, and it is computed from the mask", rare=True)
        return kept

    def _check_polygons(self, given: list[Any], polygonal: np.ndarray) -> tuple[np.ndarray, Polygons]:
        """Check the segmentations that are not RLE; return which annotations can be drawn, and their polygons."""
        wrong = np.zeros(len(given), dtype=bool)
        wrong[polygonal] = [type(s) is not list or {*map(type, s)} != {list} for s in compress(given, polygonal)]
        self.refuse(wrong, "has a segmentation that is neither RLE nor a list of polygons", "write [[x, y, …], …]")
        owners = np.array([i for i in np.flatnonzero(polygonal) for _ in given[i]], dtype=int)
        parts = [part for segment in compress(given, polygonal) for part in segment]
        values = _floats(chain.from_iterable(parts))
        if values is None:
            wrong[owners[[_floats(part) is None for part in parts]]] = True
            self.refuse(wrong, "has a polygon with other than finite numbers", "write [x, y, x, y, …] in pixels")
            raise AssertionError("numbers are wrong together and right one by one")
        lengths = np.array([len(part) for part in parts], dtype=int)
        short = (lengths < 6) | (lengths % 2 > 0)
        wrong[owners[short]] = True
        kept = self.refuse(wrong, "has a polygon of fewer than 6 or an odd number of numbers", "mend it", rare=True)
        polygons = Polygons(values[np.repeat(~short, lengths)].reshape(-1, 2), lengths[~short] // 2, owners[~short])
        low, high = polygons.extent()
        limits = self.sizes[polygons.owners] + TOLERANCE
        wrong[:] = False
        wrong[polygons.owners[np.concatenate([low < -TOLERANCE, high > limits], 1).any(1)]] = True
        kept &= self.refuse(wrong, "has a polygon beyond its image", "cut it at the image's edges", rare=True)
        return kept, polygons

    def _check_keypoints(self) -> None:
        what = "keypoints of 17 times x, y and visibility 0, 1 or 2"
        visible = self._numbers("keypoints", 51, what, "write them as COCO does")[:, 2::3]
        self.refuse(~np.isin(visible, (0, 1, 2)).all(1), f"has no {what}", "write them as COCO does")
        counted = (visible > 0).sum(1)
        stated = [row.get("num_keypoints", counted[i]) for i, row in enumerate(self.rows)]
        differ = np.array([value != counted[i] for i, value in enumerate(stated)], dtype=bool)
        self.refuse(differ, "has a num_keypoints that is not the number of its visible ones", "remove num_keypoints")
        self.crowd |= counted == 0  # neither trained on nor scored


def _floats(values: Iterable[Any]) -> np.ndarray | None:
    """Return values as an array, None where any is not a finite integer or float."""
    values = list(values)
    if not {*map(type, values)} <= {int, float}:
        return None
    try:
        array = np.fromiter(values, dtype=float, count=len(values))
    except OverflowError:  # an integer of hundreds of digits
        return None
    return array if np.isfinite(array).all() else None


class Polygons:
    """The polygons of all annotations.

    Args:
        points: (P, 2) of all polygons one after another.
        counts: (M,) number of points of each polygon.
        owners: (M,) index of the annotation of each polygon, ascending.
    """

    def __init__(self, points: np.ndarray, counts: np.ndarray, owners: np.ndarray) -> None:
        self.points, self.owners, self.bounds = points, owners, np.append(0, np.cumsum(counts))

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the largest x and y of each polygon, (M, 2)."""
        if not self.owners.size:
            return np.zeros((0, 2)), np.zeros((0, 2))
        starts = self.bounds[:-1]
        return np.minimum.reduceat(self.points, starts), np.maximum.reduceat(self.points, starts)

    def of(self, annotation: int) -> list[list[float]]:
        """Return the polygons of an annotation as COCO writes them."""
        first, last = np.searchsorted(self.owners, [annotation, annotation + 1])
        return [self.points[self.bounds[k] : self.bounds[k + 1]].reshape(-1).tolist() for k in range(first, last)]


def _mask_areas(
    encoded: dict[int, Row], polygons: Polygons, sizes: np.ndarray, kept: np.ndarray, indices: range
) -> list[float]:
    """Return the pixels of the masks of some annotations; 0 for those that are not kept."""
    return [mask_area(encoded.get(i) or polygons.of(i), *sizes[i].tolist()) if kept[i] else 0.0 for i in indices]


def is_rle(segment: Row, width: float, height: float) -> bool:
    """Return whether a run-length encoding, compressed or not, has exactly the pixels of its image."""
    counts = segment.get("counts")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if segment.get("size") != [height, width] or type(counts) is not list or {*map(type, counts)} != {int}:
        return False
    return min(counts) >= 0 and sum(counts) == width * height


def _decompress(text: str) -> list[int] | None:
    """Return the runs of COCO's compressed RLE, None where it is broken.

    A run is written as characters of six bits: five of the value, lowest first, and whether more follow. From the
    fourth run on, the value is the difference to the run before the last.
    """
    runs, value, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * bool(bits & 16)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return None if shift else runs
