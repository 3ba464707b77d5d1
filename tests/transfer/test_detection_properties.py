"""Random small data sets with the quirks of real ones: what the suite scores equals plain loops, or is one line.

The loops are written from the definitions of COCO's and VOC's metrics, for this file alone.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.profiles import few
from transfer.detection.annotations import Needs
from transfer.detection.coco_check import check_coco
from transfer.detection.evaluation import coco_metrics, load_coco
from transfer.detection.voc import read_voc, voc_metrics
from transfer.detection.voc_check import check_voc

WIDTH, HEIGHT = 180, 140
IOUS = np.linspace(0.5, 0.95, 10).tolist()  # by pycocotools' own rounding: an IoU may be 0.85 exactly
VOC_IOUS = [percent / 100 for percent in range(50, 100, 5)]
Row = dict[str, Any]
fault = pytest.mark.fault


def write_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name, quality=10)


def refusal(work: Callable[[], object]) -> str | None:
    """Return the line of a ValueError, None without one."""
    try:
        work()
    except ValueError as error:
        return str(error)
    return None


# COCO


def draw_box(rng: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height: small, medium or large in COCO's sense."""
    side = rng.choice([9, 20, 50, 90, 120])
    width, height = min(WIDTH, side + rng.randint(-5, 15)), min(HEIGHT, side + rng.randint(-5, 15))
    return rng.randint(0, WIDTH - width), rng.randint(0, HEIGHT - height), width, height


def mask_of(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    left, top, width, height = box
    mask[top : top + height, left : left + width] = True
    return mask


def encode(mask: np.ndarray) -> Row:
    """Uncompressed RLE: lengths of runs of 0 and 1 in turn, down the columns."""
    runs, last, length = [], False, 0
    for value in mask.T.reshape(-1).tolist():
        if value != last:
            runs.append(length)
            last, length = value, 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, length]}


def segmentation(rng: random.Random, box: tuple[int, int, int, int]) -> tuple[Any, np.ndarray]:
    """A rectangle as a polygon, or RLE with a notch; and its pixels."""
    left, top, width, height = box
    mask = mask_of(box)
    if rng.random() < 0.5:
        return [[left, top, left + width, top, left + width, top + height, left, top + height]], mask
    mask[top : top + height // 3, left : left + width // 3] = False
    return encode(mask), mask


FLAWS = {
    "annotations have the id": lambda content, row: content["annotations"].append(dict(row)),
    "has a category_id": lambda content, row: row.update(category_id=999),
    "has a image_id": lambda content, row: row.update(image_id=999),
    "negative width": lambda content, row: row.update(bbox=[50, 50, -4, 9]),
    "without width or height": lambda content, row: row.update(bbox=[50, 50, 0, 9]),
    "four finite numbers": lambda content, row: row.update(bbox=[50, float("nan"), 4, 9]),
    "no bbox of four": lambda content, row: row.update(bbox=[50, 4, 9]),
    "beyond its image": lambda content, row: row.update(bbox=[WIDTH - 9, 9, WIDTH - 2, 30]),
    "images have the id": lambda content, row: content["images"].append(dict(content["images"][0])),
    "area 0": lambda content, row: row.update(area=0, iscrowd=0),
    "larger than its bbox": lambda content, row: row.update(area=99 * WIDTH * HEIGHT, iscrowd=0),
    "iscrowd other": lambda content, row: row.update(iscrowd=2),
    "categories": lambda content, row: content["categories"].pop(),
}  # fmt: skip


def coco_set(rng: random.Random) -> tuple[Row, dict[int, np.ndarray], list[Row]]:
    """Return annotations, the mask of each by its index, and random detections."""
    first, step = rng.choice([(0, 1), (1, 1), (7, 5)])
    images = [{"id": first + step * i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(4)]
    labels = [3, 4, 9, 17]
    shown = labels[: rng.randint(1, 3)]  # the others are absent
    without = {key for key in ("area", "iscrowd") if rng.random() < 0.3}
    rows: list[Row] = []
    masks: dict[int, np.ndarray] = {}
    found: list[Row] = []
    for image in images[: rng.randint(1, 4)]:  # the others show nothing
        for _ in range(rng.randint(0, 4)):
            box = draw_box(rng)
            coded, masks[len(rows)] = segmentation(rng, box)
            row = {"id": first + 2 * len(rows), "image_id": image["id"], "category_id": rng.choice(shown)}
            row |= {"bbox": [float(side) if rng.random() < 0.5 else side for side in box], "segmentation": coded}
            row |= {"area": float(masks[len(rows)].sum()), "iscrowd": int(rng.random() < 0.15)}
            rows.append({key: value for key, value in row.items() if key not in without or rng.random() < 0.2})
            for _ in range(rng.randint(0, 3)):
                left, top, width, height = box
                near = (left + rng.randint(-6, 6), top + rng.randint(-6, 6), width, height)
                near = near if rng.random() < 0.8 else draw_box(rng)
                label = row["category_id"] if rng.random() < 0.8 else rng.choice(labels)
                found.append({"image_id": image["id"], "category_id": label, "box": near})
    for score, row in enumerate(rng.sample(found, len(found)), 1):
        row["score"] = score / (len(found) + 1)
    categories = [{"id": i, "name": f"class {i}"} for i in labels]
    return {"images": images, "annotations": rows, "categories": categories}, masks, found


def inside(box: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a detection that may reach over the edge."""
    left, top, width, height = box
    cut = (max(left, 0), max(top, 0), min(left + width, WIDTH), min(top + height, HEIGHT))
    return mask_of((cut[0], cut[1], cut[2] - cut[0], cut[3] - cut[1]))


def box_iou(a: Any, b: Any, crowd: bool) -> float:
    sides = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = float(np.prod([max(side, 0) for side in sides]))
    return common / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - common)


def mask_iou(a: np.ndarray, b: np.ndarray, crowd: bool) -> float:
    common = int((a & b).sum())
    return common / (int(a.sum()) if crowd else int((a | b).sum()))


def coco_ap(
    truth: list[Row], found: list[Row], label: int, iou: Callable[[Any, Any, bool], float], least: float,
    low: float, high: float,
) -> float | None:  # fmt: skip
    """COCO's AP of one class at one IoU threshold and one range of areas, in plain loops; None without objects."""
    results, positives = [], 0
    for image in sorted({row["image_id"] for row in [*truth, *found]}):
        objects = [row for row in truth if row["image_id"] == image and row["category_id"] == label]
        for row in objects:
            row["ignored"] = bool(row["crowd"]) or not low <= row["pixels"] <= high
        positives += sum(not row["ignored"] for row in objects)
        taken: set[int] = set()
        mine = [row for row in found if row["image_id"] == image and row["category_id"] == label]
        for detection in sorted(mine, key=lambda row: -row["score"])[:100]:
            best, match = min(least, 1 - 1e-10), None
            for ignored in (False, True):  # an object that counts is preferred
                for i, row in enumerate(objects):
                    free = i not in taken or row["crowd"]
                    overlap = iou(detection["shape"], row["shape"], row["crowd"])
                    if row["ignored"] == ignored and free and overlap >= best:
                        best, match = overlap, i
                if match is not None:
                    break
            if match is not None:
                taken.add(match)
                if not objects[match]["ignored"]:
                    results.append((detection["score"], True))
            elif low <= detection["pixels"] <= high:
                results.append((detection["score"], False))
    if not positives:
        return None
    points, hits = [], 0
    for count, (_, hit) in enumerate(sorted(results, reverse=True), 1):
        hits += hit
        points.append((hits / positives, hits / count))
    recalls = np.linspace(0, 1, 101)
    return float(np.mean([max((p for r, p in points if r >= recall), default=0) for recall in recalls]))


RANGES = {"AP": (0, 1e10), "APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}


def coco_reference(content: Row, masks: dict[int, np.ndarray], found: list[Row], kind: str) -> dict[str, float]:
    """All metrics in %, those without objects left out."""
    truth = []
    for i, row in enumerate(content["annotations"]):
        pixels = row.get("area", float(masks[i].sum()))
        shape = masks[i] if kind == "segm" else row["bbox"]
        truth.append({**row, "pixels": pixels, "shape": shape, "crowd": row.get("iscrowd", 0)})
    rows = []
    for row in found:
        mask, box = inside(row["box"]), row["box"]
        shape, pixels = (mask, mask.sum()) if kind == "segm" else (box, box[2] * box[3])
        rows.append({**row, "shape": shape, "pixels": pixels})
    iou: Callable[[Any, Any, bool], float] = mask_iou if kind == "segm" else box_iou
    labels = {row["id"]: row["name"] for row in content["categories"]}
    values: dict[str, float] = {}
    for name, (low, high) in RANGES.items():
        table = {i: [coco_ap(truth, rows, i, iou, least, low, high) for least in IOUS] for i in labels}
        shown = {i: aps for i, aps in table.items() if aps[0] is not None}
        if shown:
            values[name] = 100 * float(np.mean(list(shown.values())))
        if name == "AP":
            values |= {f"AP-{labels[i]}": 100 * float(np.mean(aps)) for i, aps in shown.items()}
            values |= {key: 100 * float(np.mean([a[at] for a in shown.values()])) for key, at in
                       (("AP50", 0), ("AP75", 5)) if shown}  # fmt: skip
    return values


def as_results(found: list[Row], kind: str) -> list[Row]:
    from pycocotools import mask as rle

    rows = []
    for row in found:
        coded = rle.encode(np.asfortranarray(inside(row["box"]), np.uint8))
        shape = {"size": coded["size"], "counts": coded["counts"].decode()}
        what = {"segmentation": shape} if kind == "segm" else {"bbox": list(row["box"])}
        rows.append({key: row[key] for key in ("image_id", "category_id", "score")} | what)
    return rows


@fault("detection figures", "detect", "random COCO sets: absent classes, no area or iscrowd, crowds, ids from 0, gaps")
@few(40)
@given(st.integers(0, 2**32))
def test_coco_sets_are_scored_as_plain_loops_do(seed: int) -> None:
    try_coco(seed, None)


@fault("third-party exceptions", "detect", "random COCO sets with one of 13 flaws")
@few(40)
@given(st.integers(0, 2**32), st.sampled_from([*FLAWS]))
def test_coco_sets_with_a_flaw_are_refused(seed: int, flaw: str) -> None:
    try_coco(seed, flaw)


def try_coco(seed: int, flaw: str | None) -> None:
    rng = random.Random(seed)
    content, masks, found = coco_set(rng)
    objects = [row for row in content["annotations"] if not row.get("iscrowd")]
    needs = Needs(test=True, kinds=("bbox", "segm"), classes=4)
    if flaw and content["annotations"]:
        FLAWS[flaw](content, rng.choice(content["annotations"]))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr("common.scan.CACHE", folder / "cache")
        write_images(folder / "images", [f"{i}.jpg" for i in range(4)])
        file = folder / "val.json"
        file.write_text(json.dumps(content))
        said = refusal(lambda: check_coco("val", file, folder / "images", needs))
        if not objects or (flaw and content["annotations"]):
            assert said is not None
            assert said.startswith(str(file))
            assert "\n" not in said
            assert not flaw or flaw in said or "no object to find" in said
            return
        assert said is None
        for kind in ("bbox", "segm"):
            ours = coco_metrics(load_coco(str(file)), as_results(found, kind), kind)
            values = {name: value for name, value in ours.items() if not np.isnan(value)}
            assert values == pytest.approx(coco_reference(content, masks, found, kind), abs=1e-9)


# VOC

NAMES = ("cat", "dog", "bird")
VOC_FLAWS = {
    "none of the classes": lambda text: text.replace("<name>", "<name>x", 1),
    "not left, top": lambda text: text.replace("<xmin>", "<xmin>999", 1),
    "a number of pixels": lambda text: text.replace("<ymax>", "<ymax>a", 1),
    "not xml": lambda text: text[:-3],
    "<size>": lambda text: text.replace("<annotation>", "<annotation><size><width>9</width><height>9</height></size>"),
}


def voc_set(rng: random.Random, folder: Path, flaw: str | None) -> tuple[list[Row], list[Row], bool]:
    """Write VOC2007 with the split test; return objects, random detections and whether the flaw was written."""
    names = [f"{i:06d}" for i in range(4)]
    write_images(folder / "JPEGImages", [f"{name}.jpg" for name in names])
    (folder / "Annotations").mkdir()
    shown = NAMES[: rng.randint(1, 3)]
    truth: list[Row] = []
    found: list[Row] = []
    written = False
    for name in names:
        text = ""
        for _ in range(rng.randint(0, 3)):
            left, top, width, height = draw_box(rng)
            box = [left + 1, top + 1, left + width, top + height]
            row = {"image": name, "label": rng.choice(shown), "box": box, "hard": rng.random() < 0.2}
            if any(row["box"] == other["box"] and other["image"] == name for other in truth):
                continue
            truth.append(row)
            sides = [f"{side}.0" if rng.random() < 0.3 else str(side) for side in box]
            flag = f"<difficult>{int(row['hard'])}</difficult>" if row["hard"] or rng.random() < 0.5 else ""
            more = rng.choice(["", "<truncated>1</truncated>", "<pose>Left</pose><truncated>0</truncated>"])
            corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
            text += f"<object><name>{row['label']}</name>{flag}{more}<bndbox>{corners}</bndbox></object>"
            for _ in range(rng.randint(0, 3)):
                x, y = rng.randint(-5, 5), rng.randint(-5, 5)
                near = [box[0] + x, box[1] + y, box[2] + x + rng.randint(0, 5), box[3] + y + rng.randint(0, 5)]
                label = row["label"] if rng.random() < 0.8 else rng.choice(NAMES)
                found.append({"image": name, "label": label, "box": near})
        text = f"<annotation>{text}</annotation>"
        if flaw and not written and VOC_FLAWS[flaw](text) != text:
            text, written = VOC_FLAWS[flaw](text), True
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for score, row in enumerate(rng.sample(found, len(found)), 1):
        row["score"] = score / (len(found) + 1)
    end = rng.choice(["\n", "\r\n", "  \n", "\n\n"])
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_bytes(end.join([*names, ""]).encode())
    return truth, found, written


def voc_ap(truth: list[Row], found: list[Row], label: str, least: float, eleven: bool) -> float | None:
    """VOC's AP of one class at one IoU threshold, in plain loops; None without an object to find."""
    objects = [{**row, "taken": False} for row in truth if row["label"] == label]
    positives = sum(not row["hard"] for row in objects)
    if not positives:
        return None
    points, hits, misses = [], 0, 0
    for detection in sorted((row for row in found if row["label"] == label), key=lambda row: -row["score"]):
        a, best, match = detection["box"], -1.0, None
        for row in objects:
            b = row["box"]
            width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            common = max(width, 0) * max(height, 0)
            areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
            overlap = common / (sum(areas) - common)
            if row["image"] == detection["image"] and overlap > best:
                best, match = overlap, row
        if match is None or best <= least:
            misses += 1
        elif not match["hard"]:
            hits, misses = (hits, misses + 1) if match["taken"] else (hits + 1, misses)
            match["taken"] = True
        if hits + misses:
            points.append((hits / positives, hits / (hits + misses)))
    if eleven:
        return sum(max((p for r, p in points if r >= t), default=0) for t in np.arange(0, 1.1, 0.1)) / 11
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - last) * max(p for r, p in points if r >= recall)
        last = recall
    return area


@fault("detection figures", "detect", "random VOC sets: absent classes, difficult objects, boxes with fractions")
@fault("third-party exceptions", "detect", "random VOC sets: no difficult, truncated, pose or size; lists with CRLF")
@few(40)
@given(st.integers(0, 2**32))
def test_voc_sets_are_scored_as_plain_loops_do(seed: int) -> None:
    try_voc(seed, None)


@fault("third-party exceptions", "detect", "random VOC sets with one of 5 flaws")
@few(40)
@given(st.integers(0, 2**32), st.sampled_from([*VOC_FLAWS]))
def test_voc_sets_with_a_flaw_are_refused(seed: int, flaw: str) -> None:
    try_voc(seed, flaw)


def try_voc(seed: int, flaw: str | None) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name) / "VOC2007"
        patch.setattr("common.scan.CACHE", Path(name) / "cache")
        truth, found, flawed = voc_set(rng, folder, flaw)
        said = refusal(lambda: check_voc("test", folder, "test", NAMES, test=True))
        if flawed or all(row["hard"] for row in truth):
            assert said is not None
            assert said.startswith(str(folder))
            assert not flawed or str(flaw) in said
            return
        assert said is None
        detections: dict[int, list[Any]] = {}
        for row in found:
            detections.setdefault(NAMES.index(row["label"]), []).append((row["image"], row["score"], row["box"]))
        ours = voc_metrics(read_voc(folder, "test", NAMES), detections, NAMES, eleven=True)
        for prefix, eleven in (("", True), ("area-", False)):
            table = {label: [voc_ap(truth, found, label, iou, eleven) for iou in VOC_IOUS] for label in NAMES}
            shown = {label: aps for label, aps in table.items() if aps[0] is not None}
            assert ours[f"{prefix}AP"] == pytest.approx(100 * float(np.mean(list(shown.values()))))
            assert ours[f"{prefix}AP50"] == pytest.approx(100 * float(np.mean([aps[0] for aps in shown.values()])))
            assert ours[f"{prefix}AP75"] == pytest.approx(100 * float(np.mean([aps[5] for aps in shown.values()])))
            for label in NAMES:
                wanted = 100 * float(np.mean(shown[label])) if label in shown else np.nan
                assert ours[f"{prefix}AP-{label}"] == pytest.approx(wanted, nan_ok=True)
