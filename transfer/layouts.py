"""The folder trees in which detectron2 and mmsegmentation expect public data sets, and where to get them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The tree of a data set below --data-root.

    Attributes:
        patterns: of files, with {a,b} as in a shell; each must match at least one file that is not empty.
        source: where to get the data set.
    """

    patterns: tuple[str, ...]
    source: str

    @property
    def parts(self) -> list[str]:
        """The patterns with their braces expanded."""
        words = ([word.split(",") for word in re.split("[{}]", pattern)] for pattern in self.patterns)
        return ["".join(chosen) for pattern in words for chosen in itertools.product(*pattern)]

    def missing(self, root: Path) -> list[str]:
        """Return the parts without a file below `root`."""
        return [part for part in self.parts if not any(p.is_file() and p.stat().st_size for p in root.glob(part))]


_COCO = "https://cocodataset.org/#download (2017 train images, val images, train/val annotations)"
_COCO_IMAGES = "coco/{train2017,val2017}/*.jpg"
_CITYSCAPES = "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)"
_CITYSCAPES_IMAGES = "cityscapes/leftImg8bit/{train,val}/*/*_leftImg8bit.png"
_ADE = "ade/ADEChallengeData2016"
_VOC12 = "VOCdevkit/VOC2012"
LAYOUTS = {
    "coco": Layout((_COCO_IMAGES, "coco/annotations/instances_{train2017,val2017}.json"), _COCO),
    "coco-keypoints": Layout((_COCO_IMAGES, "coco/annotations/person_keypoints_{train2017,val2017}.json"), _COCO),
    "lvis-v1": Layout(
        (_COCO_IMAGES, "lvis/lvis_v1_{train,val}.json"),
        "https://www.lvisdataset.org/dataset (annotations) and https://cocodataset.org/#download (images of 2017)",
    ),
    "voc": Layout(
        ("{VOC2007,VOC2012}/{JPEGImages/*.jpg,Annotations/*.xml,ImageSets/Main/trainval.txt}",
         "VOC2007/ImageSets/Main/test.txt"),
        "http://host.robots.ox.ac.uk/pascal/VOC (VOCdevkit/VOC2007, trainval and test unpacked into one folder, and "
        "VOCdevkit/VOC2012)",
    ),
    "cityscapes": Layout(
        (_CITYSCAPES_IMAGES, "cityscapes/gtFine/{train,val}/*/*_gtFine_{polygons.json,instanceIds.png}"), _CITYSCAPES
    ),
    "cityscapes-semantic": Layout(
        (_CITYSCAPES_IMAGES, "cityscapes/gtFine/{train,val}/*/*_gtFine_labelTrainIds.png"),
        f"{_CITYSCAPES}; labelTrainIds are written by cityscapesscripts' csCreateTrainIdLabelImgs",
    ),
    "voc12aug": Layout(
        (f"{_VOC12}/{{JPEGImages/*.jpg,SegmentationClass/*.png,SegmentationClassAug/*.png}}",
         f"{_VOC12}/ImageSets/Segmentation/{{train,aug,val}}.txt"),
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and SBD (https://www2.eecs.berkeley.edu/Research/Projects/CS/"
        "vision/grouping/semantic_contours), whose masks mmsegmentation's tools/dataset_converters/voc_aug.py writes; "
        "train, aug and val have 1,464, 9,118 and 1,449 names",
    ),
    "ade20k": Layout(
        (f"{_ADE}/images/{{training,validation}}/*.jpg", f"{_ADE}/annotations/{{training,validation}}/*.png"),
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    ),
}  # fmt: skip


def require_data(name: str, root: Path) -> None:
    """Check that a data set is complete.

    Args:
        name: key of LAYOUTS.
        root: --data-root.

    Raises:
        ValueError: an unknown name; or names what is missing, the tree expected and where to get it.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no data set tree is named {name!r}: use {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    if missing := layout.missing(root):
        raise ValueError(
            f"{root.absolute()} lacks {', '.join(missing)}. Expected below it: {', '.join(layout.patterns)}. "
            f"Get it from {layout.source}, or name its folder with --data-root"
        )
