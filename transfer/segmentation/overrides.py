"""Settings of a segmentation task that mmseg accepts but fails on."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from transfer.openmmlab import overrides
from transfer.openmmlab.overrides import is_count

# Keys that a config need not have: no constructor checks them, `check` does.
OPTIONAL = {"model.test_cfg": ("mode", "crop_size", "stride")}


def check(cfg: Config) -> None:
    """Check what mmengine and mmseg accept but fail on when they train or evaluate.

    Raises:
        ValueError: names the setting.
    """
    overrides.check(cfg)
    if not _pair(size := cfg.model.data_preprocessor.get("size")):
        raise ValueError(f"model.data_preprocessor.size={size!r}: must be two integers, e.g. 512,512")
    test = cfg.model.test_cfg
    if test.get("mode") not in ("slide", "whole"):
        raise ValueError(f"model.test_cfg.mode={test.get('mode')!r}: must be slide or whole")
    if test.mode == "slide":
        for name in ("crop_size", "stride"):
            if not _pair(value := test.get(name)):
                raise ValueError(f"model.test_cfg.{name}={value!r}: mode=slide needs two integers, e.g. 512,512")
        if any(step > side for step, side in zip(test.stride, test.crop_size, strict=True)):
            raise ValueError(f"model.test_cfg.stride={test.stride}: must not exceed crop_size={test.crop_size}")


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_count, value))
