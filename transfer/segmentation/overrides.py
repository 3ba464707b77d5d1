"""Settings of a segmentation task that mmseg accepts but fails on."""

from __future__ import annotations

from collections.abc import Iterator
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
    for key, value in _by_key(cfg.train_dataloader.dataset, "crop_size"):
        if _pair(value) and any(side > most for side, most in zip(value, size, strict=True)):
            raise ValueError(
                f"train_dataloader.dataset.{key}={value}: exceeds model.data_preprocessor.size={size}, to which images "
                "of a batch are padded; set both"
            )
    test = cfg.model.test_cfg
    if test.get("mode") not in ("slide", "whole"):
        raise ValueError(f"model.test_cfg.mode={test.get('mode')!r}: must be slide or whole")
    if test.mode == "slide":
        for name in ("crop_size", "stride"):
            if not _pair(value := test.get(name)):
                raise ValueError(f"model.test_cfg.{name}={value!r}: mode=slide needs two integers, e.g. 512,512")
        if any(step > side for step, side in zip(test.stride, test.crop_size, strict=True)):
            raise ValueError(f"model.test_cfg.stride={test.stride}: must not exceed crop_size={test.crop_size}")


def _by_key(node: Any, name: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting of a name, at any depth."""
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == name:
                yield f"{path}{key}", value
            yield from _by_key(value, name, f"{path}{key}.")


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_count, value))
