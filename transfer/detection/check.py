"""What of detection works on this machine: versions, operators, devices, data sets."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from transfer.layouts import LAYOUTS
from transfer.options import require

PACKAGES = ("torch", "torchvision", "detectron2", "faster_coco_eval", "pycocotools", "cityscapesscripts")


def report(root: Path) -> str:
    """A table for the screen: each part, what was found, what it is needed for.

    Args:
        root: where data sets are looked for.
    """
    rows = [["Python", platform.python_version(), ""]]
    rows += [[package, version(package), _USES.get(package, "")] for package in PACKAGES]
    rows.append(["CUDA", str(torch.version.cuda), "that this torch was built for"])
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(["GPUs", ", ".join(gpus) or "none: runs on the CPU", ""])
    rows += [[name, tried(operator), use] for name, operator, use in _OPERATORS]
    for name, layout in LAYOUTS.items():
        missing = layout.missing(root)
        rows.append(
            [f"data: {name}", f"lacks {len(missing)} of {len(layout.parts)} parts" if missing else "there", str(root)]
        )
    return str(tabulate(rows, headers=["", "found", ""]))


def version(package: str) -> str:
    """Its version and distribution, or that it is missing."""
    if importlib.util.find_spec(package) is None:
        return "missing"
    names = importlib.metadata.packages_distributions().get(package, [])
    return ", ".join(f"{importlib.metadata.version(name)} ({name})" for name in dict.fromkeys(names))


def tried(operator: Callable[[], object]) -> str:
    """Whether an operator runs; the first words of its error where it does not."""
    try:
        operator()
    except Exception as error:  # noqa: BLE001  whatever is wrong with it is what was asked
        return f"no: {' '.join(str(error).split())[:60]}"
    return "works"


def _roi_align() -> None:
    from detectron2.layers import ROIAlign

    ROIAlign((7, 7), 0.25, 0)(torch.rand(1, 4, 32, 32), torch.tensor([[0.0, 4.0, 4.0, 60.0, 60.0]]))


def _nms() -> None:
    from detectron2.layers import batched_nms

    batched_nms(torch.rand(4, 4).cumsum(1), torch.rand(4), torch.zeros(4), 0.5)


def _compiled() -> None:
    from detectron2 import _C  # noqa: F401


def _head() -> None:
    require("detectron2")
    import transfer.detection.head  # noqa: F401


_OPERATORS = (
    ("RoIAlign", _roi_align, "all R-CNN tasks; from torchvision"),
    ("NMS", _nms, "all tasks; from torchvision"),
    ("Res5ROIHeadsExtraNorm", _head, "C4 tasks; ours"),
    ("detectron2._C", _compiled, "deformable and rotated operators, which no task here uses"),
)
_USES = {
    "detectron2": "all tasks; bash setup.sh installs it",
    "faster_coco_eval": "figures of COCO and LVIS",
    "cityscapesscripts": "cityscapes-instance, which names the command that installs it",
}
