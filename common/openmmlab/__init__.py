"""Import mmseg and mmdet in this environment. Nothing that is installed is changed.

mmdet is 3.3.0, OpenMMLab's last release, and not its maintained continuation onedl-mmdetection 3.5.1. pip installs
3.3.0 as a wheel beside the pinned versions. 3.5.1 is a source package that wants imgaug, whose maintained fork wants
opencv-python below 4.13, so pip can install it only without its dependencies. Both give equal losses.

mmdet 3.3.0 makes three demands:

- It wants mmcv's compiled operations. The wheel of mmcv has none; `mmcv_ext` takes their place.
- It asserts mmcv < 2.2, the newest at its release. mmcv 2.3 states an older version while mmdet checks it.
- It imports detectron2 where that is installed. The two are kept in different processes.

mmseg imports mmdet where that is installed, for MaskFormer, and would stop at that assertion. It is made to find none.
"""

from __future__ import annotations

import importlib.util
import sys

from torch import nn

from common.extras import require

NEWEST_MMCV = "2.1.0"  # that mmdet 3.3.0 accepts
HIDDEN: set[str] = set()  # packages that are installed, though find_spec does not find them any more
# The modules of mmcv.ops whose layers work on the stand-in: they need no other compiled operation than it has.
WORKING = (
    "bbox", "cc_attention", "corner_pool", "deform_conv", "focal_loss", "masked_conv", "merge_cells",
    "modulated_deform_conv", "multi_scale_deform_attn", "nms", "point_sample", "roi_align", "roi_pool", "saconv",
)  # fmt: skip


def prepare_mmseg() -> str:
    """Make `import mmseg` work where mmdet is installed; to be called before it.

    Returns:
        Whose operations `mmcv.ops` has: "mmcv" where they are compiled, else "torchvision".
    """
    _hide("mmdet")
    return _provide_operations()  # parts of mmcv see only at their import whether there are any, and mmdet may follow


def prepare_mmdet() -> str:
    """Make `import mmdet` work; to be called before it and before mmcv is imported.

    Data workers must be forked, which is mmengine's default: a spawned process would import mmdet without this.

    Returns:
        Whose operations `mmcv.ops` has: "mmcv" where they are compiled, else "torchvision".

    Raises:
        ValueError: mmdet is not installed, or detectron2 is loaded in this process.
    """
    if sys.modules.get("detectron2"):
        raise ValueError("detectron2 is loaded in this process: use mmdet in another")
    _hide("detectron2")
    operations = _provide_operations()
    if not sys.modules.get("mmdet"):
        sys.modules.pop("mmdet", None)  # it may be hidden
        HIDDEN.discard("mmdet")
        require("mmdet")
        _import_mmdet()
    return operations


def _hide(package: str) -> None:
    """Let `import package` raise ModuleNotFoundError, as where it is not installed; a loaded package stays."""
    if package not in sys.modules and importlib.util.find_spec(package) is not None:
        sys.modules[package] = None  # type: ignore[assignment]
        HIDDEN.add(package)


def _provide_operations() -> str:
    from common.openmmlab import mmcv_ext

    # find_spec would find the stand-in too, once it is in place.
    if sys.modules.get("mmcv._ext") is not mmcv_ext and importlib.util.find_spec("mmcv._ext") is not None:
        return "mmcv"
    sys.modules["mmcv._ext"] = mmcv_ext
    return "torchvision"


def _import_mmdet() -> None:
    """Import mmdet, which asserts mmcv < 2.2.0 in its __init__.py and nowhere else."""
    import mmcv

    version, mmcv.__version__ = mmcv.__version__, NEWEST_MMCV
    try:
        import mmdet
    finally:
        mmcv.__version__ = version
    mmdet.mmcv_version = mmdet.digit_version(version)


def check_operations(model: nn.Module) -> None:
    """Check that mmcv's compiled operations are there, or that a built model needs none that the stand-in lacks.

    Raises:
        ValueError: names the first layer with such an operation, its class and what to do.
    """
    from common.openmmlab import mmcv_ext

    if sys.modules.get("mmcv._ext") is not mmcv_ext:
        return
    for name, layer in model.named_modules():
        kind, (package, _, file) = type(layer).__name__, type(layer).__module__.rpartition(".")
        if package != "mmcv.ops":
            continue
        if file == "sync_bn":
            raise ValueError(f"{name}: MMSyncBN needs mmcv's compiled operation; set type='SyncBN' in its norm_cfg")
        if file not in WORKING:
            raise ValueError(f"{name}: torchvision has no operation for mmcv's {kind}; {mmcv_ext.COMPILED}")
        if getattr(layer, "pool_mode", "avg") != "avg":
            raise ValueError(f"{name}: torchvision's {kind} has no pool_mode={layer.pool_mode!r}; set 'avg'")
