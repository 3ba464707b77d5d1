"""Random small data sets with faults: refused in one line, or scored as plain loops score them.

Run by test_segment.py in a process of its own; `--hypothesis-profile nightly` tries 500 data sets.
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from mmengine.config import Config
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import METRICS
from PIL import Image

from common import scan
from tests.profiles import few
from tests.transfer.mask_sets import write_image, write_mask, write_task
from transfer.segmentation.config import read_task
from transfer.segmentation.data import find_data, list_parts
from transfer.segmentation.data_check import check_data
from transfer.segmentation.run import register

IGNORED = 255
VOC = list(PascalVOCDataset.METAINFO["classes"])
FATAL = ("RGB", "JPEG", "another size", "too large", "EXIF", "truncated", "no mask", "no image", "image twice")
HARMLESS = ("palette", "16 bit", "a bit deep")


@dataclass
class Picture:
    """An image and its mask as they are written.

    Args:
        labels: (H, W), the values in the file.
        quirk: one of FATAL or HARMLESS, or "".
    """

    labels: np.ndarray
    quirk: str = ""


@dataclass
class DataSet:
    """A random data set.

    Args:
        classes: names; a part of VOC's in another order where `voc`.
        voc: mmseg maps VOC's labels to these classes, and ignores the others.
        reduce_zero: label 0 is ignored, and the classes count from 1.
        absent: the task names any class as absent.
        train, val: its pictures.
    """

    classes: list[str]
    voc: bool
    reduce_zero: bool
    absent: bool
    train: list[Picture] = field(default_factory=list)
    val: list[Picture] = field(default_factory=list)

    def meaning(self, label: int) -> int | None:
        """Return the class of a label, None where it is ignored, -1 where it is none."""
        if label == IGNORED or (self.reduce_zero and label == 0):
            return None
        if self.voc:
            if label >= len(VOC):
                return -1
            return self.classes.index(VOC[label]) if VOC[label] in self.classes else None
        found = label - self.reduce_zero
        return found if 0 <= found < len(self.classes) else -1

    def faults(self) -> list[str]:
        """Return why the set must be refused."""
        found = [picture.quirk for picture in self.train + self.val if picture.quirk in FATAL]
        for pictures in (self.train, self.val):
            shown = set()
            for picture in pictures:
                for row in picture.labels:
                    shown |= {self.meaning(int(label)) for label in row}
            shown -= {None}
            if -1 in shown:
                found.append("a label that is none")
            if len(shown) < 2 or (len(shown) < len(self.classes) and not self.absent):
                found.append(f"only {shown} shown")
        return found


@st.composite
def data_sets(draw: st.DrawFn) -> DataSet:
    voc = draw(st.booleans())
    count = draw(st.integers(2, 4))
    classes = draw(st.permutations(VOC))[:count] if voc else [f"class {i}" for i in range(count)]
    made = DataSet(classes, voc, not voc and draw(st.booleans()), draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = len(VOC) if voc else count + made.reduce_zero
    for pictures in (made.train, made.val):
        for _ in range(draw(st.integers(1, 3))):
            shape = draw(st.integers(3, 9)), draw(st.integers(3, 9))
            few_labels = rng.choice(values, rng.integers(1, values + 1), replace=False)
            labels = rng.choice(draw(st.sampled_from([values, values, few_labels])), shape)
            if draw(st.sampled_from([True, True, True, False])):
                labels.flat[:count] = [VOC.index(x) for x in classes] if voc else np.arange(count) + made.reduce_zero
            labels[rng.random(shape) < draw(st.sampled_from([0, 0, 0.1, 0.2, 1]))] = IGNORED
            quirk = draw(st.sampled_from(["", "", *HARMLESS] * 4 + list(FATAL)))
            if quirk == "too large":
                labels[0, 0] = draw(st.integers(values, 254) | st.integers(256, 700))
            if quirk == "a bit deep":
                labels = (labels == 1).astype(int)
            pictures.append(Picture(labels, quirk))
    return made


def write(made: DataSet, root: Path) -> Path:
    """Write the images, masks, lists and the task of a data set; return the task."""
    rng = np.random.default_rng(0)
    for split, pictures in (("train", made.train), ("val", made.val)):
        for i, picture in enumerate(pictures):
            image, mask = (root / "mine" / kind / split for kind in ("images", "masks"))
            size = picture.labels.shape[::-1]
            write_image(image / f"{i}.jpg", rng, size, 6 if picture.quirk == "EXIF" else 1)
            write_picture(mask / f"{i}.png", picture)
            if picture.quirk == "no image":
                (image / f"{i}.jpg").unlink()
            if picture.quirk == "no mask":
                (mask / f"{i}.png").unlink()
        lines = [str(i) for i, picture in enumerate(pictures) for _ in range(1 + (picture.quirk == "image twice"))]
        (root / "mine" / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    kind: dict[str, Any] = {"dataset_type": "PascalVOCDataset"} if made.voc else {}
    return write_task(
        root / "task.yaml", made.classes, lists=True, dataset_reduce_zero_label=made.reduce_zero,
        absent_classes="any" if made.absent else None, **kind,
    )  # fmt: skip


def write_picture(path: Path, picture: Picture) -> None:
    """Write a mask with its quirk."""
    labels, quirk = picture.labels, picture.quirk
    narrow = labels.astype(np.uint16 if labels.max() > 255 or quirk == "16 bit" else np.uint8)
    if quirk == "RGB":
        narrow = np.stack([narrow] * 3, axis=-1)
    elif quirk == "another size":
        narrow = np.pad(narrow, ((0, 1), (0, 0)), mode="edge")
    if quirk == "a bit deep":
        narrow = labels.astype(bool)
    write_mask(path, narrow)
    if quirk == "palette":
        image = Image.fromarray(narrow)
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        image.save(path)
    elif quirk == "JPEG":
        Image.fromarray(narrow).save(path, "jpeg")
    elif quirk == "truncated":
        path.write_bytes(path.read_bytes()[:40])


def by_loops(truth: list[list[int | None]], found: list[list[int]], classes: int) -> dict[str, float]:
    """Return the metrics over all pixels of all images, counted one by one."""
    hits, rows, columns = ([0] * classes for _ in range(3))
    for image, predicted in zip(truth, found, strict=True):
        for right, guess in zip(image, predicted, strict=True):
            if right is None:
                continue
            rows[right] += 1
            columns[guess] += 1
            hits[right] += right == guess
    unions = [rows[i] + columns[i] - hits[i] for i in range(classes)]
    iou = {i: hits[i] / unions[i] for i in range(classes) if unions[i]}
    accuracy = [hits[i] / rows[i] for i in range(classes) if rows[i]]
    return {
        "mIoU": math.fsum(iou.values()) / len(iou), "mAcc": math.fsum(accuracy) / len(accuracy),
        "aAcc": sum(hits) / sum(rows), **{f"IoU/{i}": value for i, value in iou.items()},
    }  # fmt: skip


def by_suite(cfg: Config, found: list[list[int]]) -> dict[str, float]:
    """Return the metrics of predictions, in the order of the test set, read and scored as after training."""
    (part,) = list_parts(cfg, "val_dataloader")
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = part.dataset.metainfo
    for i, predicted in enumerate(found):
        sample = part.dataset[i]["data_samples"].to_dict()
        guess = np.array(predicted).reshape(sample["gt_sem_seg"]["data"].shape)
        truth = sample["gt_sem_seg"]["data"]
        metric.process({}, [{"pred_sem_seg": {"data": truth.new_tensor(guess)}, "gt_sem_seg": {"data": truth}}])
    numbers = {f"IoU/{name}": f"IoU/{i}" for i, name in enumerate(part.dataset.metainfo["classes"])}
    return {numbers.get(name, name): value for name, value in metric.evaluate(len(found)).items()}


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register()


@pytest.mark.fault("segmentation figures", "segment", "random data sets with faults, compared with plain loops")
@few(40)
@given(made=data_sets(), seed=st.integers(0, 2**16))
def test_a_data_set_is_refused_in_one_line_or_scored_as_by_plain_loops(made: DataSet, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        patch.setattr(scan, "CACHE", root / "checks")
        cfg = read_task(str(write(made, root)))
        find_data(cfg, root)
        faults = made.faults()
        event("refused" if faults else "scored")
        if faults:
            with pytest.raises(ValueError, match=re.escape(str(root))) as raised:
                check_data(cfg)
            assert "\n" not in str(raised.value)
            return
        check_data(cfg)
        count, rng = len(made.classes), np.random.default_rng(seed)
        truth = [[made.meaning(int(label)) for label in picture.labels.flat] for picture in made.val]
        guesses = [rng.integers(0, count, len(image)).tolist() for image in truth]
        perfect = [
            [guess if right is None else right for right, guess in zip(*pair, strict=True)]
            for pair in zip(truth, guesses, strict=True)
        ]
        shown = {right for image in truth for right in image} - {None}
        assert by_suite(cfg, perfect) == {"mIoU": 1, "mAcc": 1, "aAcc": 1, **{f"IoU/{i}": 1 for i in shown}}
        assert by_suite(cfg, guesses) == pytest.approx(by_loops(truth, guesses, count), abs=1e-12)
