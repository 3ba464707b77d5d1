"""--cfg-options: changes of a task's config that take effect or are refused, and how they are told in a protocol."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, DictAction

from transfer.segmentation.tasks import whole

# Keys that a config need not have: no constructor checks them, `check` does.
OPTIONAL = {"model.test_cfg": ("mode", "crop_size", "stride")}
COUNTS = (
    "train_cfg.max_iters",
    "train_cfg.val_interval",
    "train_dataloader.batch_size",
    "val_dataloader.batch_size",
    "default_hooks.logger.interval",
    "default_hooks.checkpoint.interval",
)
# As keys of the config, what tasks.figures_depend_on has under names of its own
KEYS = {"max_iters": "train_cfg.max_iters", "batch": "train_dataloader.batch_size"}


def apply(cfg: Config, assignments: Sequence[str]) -> None:
    """Apply --cfg-options: KEY=VALUE with dots in the key, as mmengine's tools take them.

    A new key is taken only where something will check it: a constructor, in a dict with a `type`, or `check`. A
    typing mistake must not become an experiment with the default.

    Raises:
        ValueError: no KEY=VALUE, a key that the config does not have, or a value of another kind.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("options", nargs="*", action=DictAction)
    for text in assignments:
        key, found, _ = text.partition("=")
        if not found or not key:
            raise ValueError(f"--cfg-options {text}: must be KEY=VALUE")
        *parents, last = key.split(".")
        place: Any = cfg
        for number, name in enumerate(parents):
            place = _item(place, name, ".".join(parents[: number + 1]))
        optional = OPTIONAL.get(".".join(parents), ())
        known = _has(place, last) or last in optional
        if not known and not (isinstance(place, dict) and "type" in place):
            raise ValueError(f"--cfg-options {key}: the config has no such key{_near(place, last, optional)}")
        before = _get(place, last) if _has(place, last) else None
        try:
            values = parser.parse_args([text]).options
            if wanted := _other_kind(before, values[key], known):
                raise ValueError(f"must be {wanted}, as {before!r} is")
            cfg.merge_from_dict(values)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, argparse.ArgumentError) as error:
            raise ValueError(f"--cfg-options {text}: {error}") from error


def _other_kind(before: Any, value: Any, known: bool) -> str:
    """What a value must be instead, "" where it is of a kind that may stand for the one before."""
    if not known or before is None or value is None:
        return ""
    if isinstance(before, dict):
        return "" if isinstance(value, dict) else "a dict"
    if isinstance(before, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(before, int | float):
        return "a number" if isinstance(value, str | bool) else ""
    if isinstance(before, list | tuple):
        return "" if isinstance(value, list | tuple) else "a list"
    return ""


def _get(place: Any, name: str) -> Any:
    return place[name] if isinstance(place, dict | Config) else place[int(name)]


def _has(place: Any, name: str) -> bool:
    if isinstance(place, list | tuple):
        return name.isdigit() and int(name) < len(place)
    return isinstance(place, dict | Config) and name in place


def _item(place: Any, name: str, told: str) -> Any:
    if not _has(place, name):
        raise ValueError(f"--cfg-options: the config has no {told}{_near(place, name)}")
    return _get(place, name)


def _near(place: Any, name: str, more: Sequence[str] = ()) -> str:
    near = difflib.get_close_matches(name, [*place, *more], 1) if isinstance(place, dict | Config) else []
    return f"; did you mean {near[0]}?" if near else ""


def check(cfg: Config) -> None:
    """Look for what mmengine and mmseg take as it is and fail on once they train or evaluate.

    Raises:
        ValueError: names the setting.
    """
    for key in COUNTS:
        value: Any = cfg
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict | Config) else None
        if not whole(value):
            raise ValueError(f"{key}={value!r}: must be a whole number, at least 1")
    rate = cfg.optim_wrapper.optimizer.get("lr")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or rate < 0:
        raise ValueError(f"optim_wrapper.optimizer.lr={rate!r}: must be a number, at least 0")
    if not _pair(size := cfg.model.data_preprocessor.get("size")):
        raise ValueError(f"model.data_preprocessor.size={size!r}: must be two whole numbers, e.g. 512,512")
    told = cfg.model.test_cfg
    if told.get("mode") not in ("slide", "whole"):
        raise ValueError(f"model.test_cfg.mode={told.get('mode')!r}: must be slide or whole")
    if told.mode == "slide":
        for name in ("crop_size", "stride"):
            if not _pair(told.get(name)):
                raise ValueError(
                    f"model.test_cfg.{name}={told.get(name)!r}: mode=slide needs two whole numbers, e.g. 512,512"
                )
        if any(step > side for step, side in zip(told.stride, told.crop_size, strict=True)):
            raise ValueError(f"model.test_cfg.stride={told.stride}: must not exceed crop_size={told.crop_size}")


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(whole, value))


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return KEY=VALUE for each setting that is another than before; both are from tasks.figures_depend_on."""
    return list(_differences(*(json.loads(json.dumps(told)) for told in (before, after))))  # tuples are lists


def _differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() <= after.keys():
        for name, value in after.items():
            key = f"{place}.{name}" if place else KEYS.get(str(name), str(name))
            if name in before:
                yield from _differences(before[name], value, key)
            else:
                yield _told(key, value)
    elif _nested(before) and _nested(after) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, f"{place}.{number}")
    elif before != after:
        yield _told(place, after)


def _nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _told(key: str, value: Any) -> str:
    return f"{key}={value}".replace(" ", "")
