"""The project's tasks: titles, the metrics that tables show, and the published task that each stands in for.

Every other task gets a separate table.
"""

from __future__ import annotations

from dataclasses import dataclass

BOX_AND_MASK = ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "segm/AP75")
BOX = BOX_AND_MASK[:3]
IOU = ("mIoU", "mAcc", "aAcc")

METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mAP": "mAP",
    "mIoU": "mIoU",
    "mAcc": "mAcc",
    "aAcc": "aAcc",
    "bbox/AP": "AP box",
    "bbox/AP50": "AP50 box",
    "bbox/AP75": "AP75 box",
    "segm/AP": "AP mask",
    "segm/AP50": "AP50 mask",
    "segm/AP75": "AP75 mask",
    "keypoints/AP": "AP keypoints",
    "knn_top1": "top-1",
    **{f"knn_top1_k{k}": f"top-1, k = {k}" for k in (10, 20, 100, 200)},
    **{f"mAP_k{k}": f"mAP, k = {k}" for k in (1, 2, 4, 8, 16, 32, 64, 96)},
}  # fmt: skip  (name in records -> title)

PAPER_TITLES = {
    "imagenet-linear": "ImageNet, linear", "imagenet-knn": "ImageNet, kNN", "coco-c4-1x": "COCO, C4 1x",
    "imagenet-finetune-1": "ImageNet, 1 % of the labels", "imagenet-finetune-10": "ImageNet, 10 % of the labels",
    "voc12aug-fcn-20k": "VOC12aug, FCN", "voc07-svm": "VOC07 SVM", "voc07-lowshot": "VOC07 low-shot",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A benchmark of the project.

    Attributes:
        title: its name in tables.
        table: the table that shows it, a key of contents.TITLES.
        metrics: what tables show of it, as named in records, the leading metric first.
        paper: the task of published.csv that it stands in for at small scale, if any.
    """

    title: str
    table: str
    metrics: tuple[str, ...]
    paper: str | None = None


TASKS = {
    "linear": Task("linear", "classification", ("top1", "top5"), "imagenet-linear"),
    "knn": Task("kNN", "classification", tuple(f"knn_top1_k{k}" for k in (200, 100, 20, 10)), "imagenet-knn"),
    "fashion-fpn": Task("Fashion Scenes, FPN", "detection", BOX_AND_MASK, "coco-c4-1x"),
    "fashion-c4": Task("Fashion Scenes, C4", "detection", BOX_AND_MASK, "coco-c4-1x"),
    "voc-c4-24k": Task("VOC, C4 24k", "detection", BOX),
    "coco-c4-1x": Task("COCO, C4 1x", "detection", BOX_AND_MASK),
    "coco-c4-2x": Task("COCO, C4 2x", "detection", BOX_AND_MASK),
    "coco-fpn-1x": Task("COCO, FPN 1x, heads without norm", "detection", BOX_AND_MASK),
    "coco-fpn-2x": Task("COCO, FPN 2x, heads without norm", "detection", BOX_AND_MASK),
    "coco-fpn-b-1x": Task("COCO, FPN 1x, heads with SyncBN", "detection", BOX_AND_MASK),
    "coco-fpn-b-2x": Task("COCO, FPN 2x, heads with SyncBN", "detection", BOX_AND_MASK),
    "coco-retinanet-1x": Task("COCO, RetinaNet 1x", "detection", BOX),
    "coco-keypoint-2x": Task("COCO keypoints 2x", "detection", ("keypoints/AP",)),
    "cityscapes-instance": Task("Cityscapes, instances", "detection", ("segm/AP", "segm/AP50")),
    "lvis-v1-fpn": Task("LVIS v1, FPN", "detection", ("bbox/AP", "segm/AP")),
    "fashion-fcn": Task("Fashion Scenes, FCN", "segmentation", IOU, "voc12aug-fcn-20k"),
    "voc12aug-fcn-20k": Task("VOC12aug, FCN", "segmentation", IOU),
    "cityscapes-fcn-40k": Task("Cityscapes, FCN", "segmentation", IOU),
    "ade20k-fcn-80k": Task("ADE20K, FCN", "segmentation", IOU),
    "ade20k-upernet-80k": Task("ADE20K, UPerNet", "segmentation", IOU),
    "voc12aug-deeplabv3-20k": Task("VOC12aug, DeepLabV3", "segmentation", IOU),
    "voc12aug-fcn16s-30k": Task("VOC, FCN-16s", "segmentation", IOU),
    "cityscapes-fcn16s-90k": Task("Cityscapes, FCN-16s", "segmentation", IOU),
    "finetune": Task("fine-tuning", "semi", ("top1", "top5"), "imagenet-finetune-10"),
    "voc07-svm": Task("VOC07 SVM", "semi", ("mAP",)),
    "svm": Task("SVM", "semi", ("mAP",)),
    "lowshot": Task("low-shot", "semi", tuple(f"mAP_k{k}" for k in (1, 4, 16, 96))),
    "voc07-lowshot": Task("VOC07 low-shot", "semi", tuple(f"mAP_k{k}" for k in (1, 4, 16, 96))),
}


def task_title(name: str) -> str:
    """Return the title of a task; of an unknown one its name."""
    return TASKS[name].title if name in TASKS else name


def task_order(name: str) -> tuple[int, str]:
    """Return the sort key of a task: unknown ones follow those of the registry."""
    return (list(TASKS).index(name) if name in TASKS else len(TASKS)), name
