"""The folder trees in which detectron2 and mmsegmentation expect public data sets, and where to get them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The tree of a data set below --data-root.

    Attributes:
        parts: patterns of files; each must match at least one file that is not empty.
        tree: the same in short, for messages.
        source: where to get the data set.
    """

    parts: tuple[str, ...]
    tree: str
    source: str

    def missing(self, root: Path) -> list[str]:
        """Return the patterns without a file below `root`."""
        return [part for part in self.parts if not _found(root, part)]


_COCO_IMAGES = ("coco/train2017/*.jpg", "coco/val2017/*.jpg")
_VOC = ("JPEGImages/*.jpg", "Annotations/*.xml", "ImageSets/Main/trainval.txt")
_COCO = "https://cocodataset.org/#download (2017 train images, val images, train/val annotations)"

LAYOUTS = {
    "coco": Layout(
        (*_COCO_IMAGES, "coco/annotations/instances_train2017.json", "coco/annotations/instances_val2017.json"),
        "coco/{train2017,val2017}/*.jpg, coco/annotations/instances_{train2017,val2017}.json",
        _COCO,
    ),
    "coco-keypoints": Layout(
        (
            *_COCO_IMAGES, "coco/annotations/person_keypoints_train2017.json",
            "coco/annotations/person_keypoints_val2017.json",
        ),
        "coco/{train2017,val2017}/*.jpg, coco/annotations/person_keypoints_{train2017,val2017}.json",
        _COCO,
    ),
    "lvis-v1": Layout(
        (*_COCO_IMAGES, "lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json"),
        "coco/{train2017,val2017}/*.jpg, lvis/lvis_v1_{train,val}.json",
        "https://www.lvisdataset.org/dataset (annotations) and https://cocodataset.org/#download (images of 2017)",
    ),
    "voc": Layout(
        (
            *(f"VOC{year}/{part}" for year in (2007, 2012) for part in _VOC),
            "VOC2007/ImageSets/Main/test.txt",
        ),
        "VOC2007/ and VOC2012/, each with JPEGImages/*.jpg, Annotations/*.xml, ImageSets/Main/trainval.txt; "
        "VOC2007 with ImageSets/Main/test.txt too (trainval and test unpacked into one folder)",
        "http://host.robots.ox.ac.uk/pascal/VOC (VOCdevkit/VOC2007 and VOCdevkit/VOC2012)",
    ),
    "cityscapes": Layout(
        tuple(
            f"cityscapes/{part}"
            for split in ("train", "val")
            for part in (
                f"leftImg8bit/{split}/*/*_leftImg8bit.png", f"gtFine/{split}/*/*_gtFine_polygons.json",
                f"gtFine/{split}/*/*_gtFine_instanceIds.png",
            )
        ),
        "cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, "
        "cityscapes/gtFine/{train,val}/CITY/*_gtFine_{polygons.json,instanceIds.png}",
        "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)",
    ),
    "cityscapes-semantic": Layout(
        tuple(
            f"cityscapes/{part}"
            for split in ("train", "val")
            for part in (
                f"leftImg8bit/{split}/*/*_leftImg8bit.png", f"gtFine/{split}/*/*_gtFine_labelTrainIds.png",
            )
        ),
        "cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, "
        "cityscapes/gtFine/{train,val}/CITY/*_gtFine_labelTrainIds.png",
        "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip); "
        "labelTrainIds are written by cityscapesscripts' csCreateTrainIdLabelImgs",
    ),
    "voc12aug": Layout(
        (
            *(f"VOCdevkit/VOC2012/{part}" for part in ("JPEGImages/*.jpg", "SegmentationClass/*.png")),
            "VOCdevkit/VOC2012/SegmentationClassAug/*.png",
            *(f"VOCdevkit/VOC2012/ImageSets/Segmentation/{names}.txt" for names in ("train", "aug", "val")),
        ),
        "VOCdevkit/VOC2012/ with JPEGImages/*.jpg, SegmentationClass/*.png, SegmentationClassAug/*.png, "
        "ImageSets/Segmentation/{train,aug,val}.txt (1,464, 9,118 and 1,449 names)",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and SBD (https://www2.eecs.berkeley.edu/Research/Projects/CS/"
        "vision/grouping/semantic_contours), whose masks mmsegmentation's tools/dataset_converters/voc_aug.py writes",
    ),
    "ade20k": Layout(
        tuple(
            f"ade/ADEChallengeData2016/{part}"
            for split in ("training", "validation")
            for part in (f"images/{split}/*.jpg", f"annotations/{split}/*.png")
        ),
        "ade/ADEChallengeData2016/ with images/{training,validation}/*.jpg, annotations/{training,validation}/*.png",
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
            f"{root.absolute()} lacks {', '.join(missing)}. Expected below it: {layout.tree}. "
            f"Get it from {layout.source}, or name its folder with --data-root"
        )


def _found(root: Path, pattern: str) -> bool:
    return any(path.is_file() and path.stat().st_size > 0 for path in root.glob(pattern))
