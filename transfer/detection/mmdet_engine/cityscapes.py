"""Cityscapes' instances for mmdet, read from the files that Cityscapes ships, and scored by its own evaluation."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS, METRICS
from PIL import Image
from pycocotools import mask as rle

from common.scan import scan_files
from transfer.detection.cityscapes_check import CROWDS, today
from transfer.detection.evaluation import fractions
from transfer.detection.mmdet_engine.evaluation import SuiteMetric

# Label ids of the classes that have instances, in the order of the classes.
LABELS = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
IMAGE, TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"


@DATASETS.register_module()
class CityscapesInstances(BaseDetDataset):
    """Cityscapes fine: every instance of instanceIds.png with its visible mask and box; groups are ignored.

    mmdet's own CityscapesDataset wants files that a tool of mmdet writes from the same images.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": tuple(LABELS.values())}

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return an entry per image in mmdet's format."""
        images, truth = Path(self.data_prefix["img"]), Path(self.data_prefix["seg"])
        files = sorted(images.glob(f"*/*{IMAGE}"))
        masks = [truth / path.parent.name / path.name.replace(IMAGE, TRUTH) for path in files]
        scan = scan_files(masks, inspect_masks, f"masks of {images.name}")
        return [
            {
                "img_id": str(path), "img_path": str(path), "width": row["size"][0], "height": row["size"][1],
                "instances": row["instances"],
            }
            for path, row in zip(files, scan, strict=True)
        ]  # fmt: skip

    def filter_data(self) -> list[dict[str, Any]]:
        """Leave out images without an instance, if filter_cfg says so."""
        if self.test_mode or not (self.filter_cfg or {}).get("filter_empty_gt"):
            return list(self.data_list)
        return [row for row in self.data_list if any(not one["ignore_flag"] for one in row["instances"])]


def inspect_masks(file: Path) -> dict[str, Any]:
    """Read instanceIds.png; return `size`, and `instances` in mmdet's format with masks as run lengths."""
    with Image.open(file) as image:
        ids = np.asarray(image).astype(np.int32)
    labels, rows = list(LABELS), []
    for number in np.unique(ids).tolist():
        label = number // 1000 if number >= CROWDS else number
        if label in LABELS:
            mask = ids == number
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            row = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            rows.append({
                "bbox": [float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)],
                "bbox_label": labels.index(label), "ignore_flag": int(number < CROWDS),
                "mask": {"size": [*map(int, row["size"])], "counts": row["counts"].decode()},
            })  # fmt: skip
    return {"size": [ids.shape[1], ids.shape[0]], "instances": rows}


@METRICS.register_module()
class CityscapesAP(SuiteMetric):
    """AP and AP50 of masks as Cityscapes' own scripts compute them.

    Args:
        truth: folder of the truth below the data's, e.g. gtFine/val.
        **settings: of SuiteMetric.
    """

    def __init__(self, truth: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.truth = self.root / truth

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Return kind/metric -> fraction."""
        files = sorted(map(str, self.truth.glob(f"*/*{TRUTH}")))
        with tempfile.TemporaryDirectory() as name, today() as scripts:
            found = {Path(image["image"]).name.removesuffix(IMAGE): image for image in results}
            lists = [_write(Path(name), Path(file).name.removesuffix(TRUTH), found) for file in files]
            scripts.args.JSONOutput, scripts.args.colorized = False, False
            scripts.args.predictionPath, scripts.args.predictionWalk = os.path.abspath(name), None
            scripts.args.gtInstancesFile = os.path.join(name, "gtInstances.json")
            averages = scripts.evaluateImgLists(lists, files, scripts.args)["averages"]
        return fractions({"segm": {"AP": 100 * averages["allAp"], "AP50": 100 * averages["allAp50%"]}})


def _write(folder: Path, stem: str, found: dict[str, dict[str, Any]]) -> str:
    """Write the predictions of an image as the scripts read them: a list of masks with class and score."""
    ids, lines, image = list(LABELS), [], found.get(stem)
    if image is not None:
        for number, (row, label, score) in enumerate(
            zip(image["masks"], image["labels"].tolist(), image["mask_scores"].tolist(), strict=True)
        ):
            mask = f"{stem}_{number}.png"
            Image.fromarray(255 * rle.decode(row)).save(folder / mask)
            lines.append(f"{mask} {ids[label]} {score}\n")
    path = folder / f"{stem}_pred.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)
