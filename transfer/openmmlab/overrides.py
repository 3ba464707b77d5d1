"""--cfg-options: changes of a task's config that either take effect or are refused."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction

from common.cli import did_you_mean

COUNTS = (
    "train_cfg.max_iters", "train_cfg.val_interval", "train_dataloader.batch_size", "val_dataloader.batch_size",
    "default_hooks.logger.interval", "default_hooks.checkpoint.interval",
)  # fmt: skip


def apply(cfg: Config, assignments: Sequence[str], optional: Mapping[str, Sequence[str]] = {}) -> None:
    """Apply --cfg-options: KEY=VALUE with dots in the key, as in mmengine's tools.

    A new key is accepted only where something checks it: a constructor, in a dict with a `type`, or the caller. Thus a
    mistyped key cannot silently leave the default in place.

    Args:
        cfg: is changed.
        assignments: the words of --cfg-options.
        optional: keys that a config need not have and the caller checks, by the dict that holds them.

    Raises:
        ValueError: no KEY=VALUE, a key that the config does not have, or a value of another type.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("options", nargs="*", action=DictAction)
    for text in assignments:
        key, found, _ = text.partition("=")
        if not found or not key:
            raise ValueError(f"--cfg-options {text}: must be KEY=VALUE")
        *parents, last = key.split(".")
        node: Any = cfg
        for depth, name in enumerate(parents, 1):
            if not _has(node, name):
                raise ValueError(f"--cfg-options: the config has no {'.'.join(parents[:depth])}{_near(node, name)}")
            node = _get(node, name)
        names = optional.get(".".join(parents), ())
        known = _has(node, last) or last in names
        if not known and not (isinstance(node, dict) and "type" in node):
            raise ValueError(f"--cfg-options {key}: the config has no such key{_near(node, last, names)}")
        before = _get(node, last) if _has(node, last) else None
        try:
            values = parser.parse_args([text]).options
            if known and (wanted := _wanted_type(before, values[key])):
                raise ValueError(f"must be {wanted}, as {before!r} is")
            cfg.merge_from_dict(values)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, argparse.ArgumentError) as error:
            raise ValueError(f"--cfg-options {text}: {error}") from error


def _wanted_type(before: Any, value: Any) -> str:
    """Return the type that a value must have to replace the one before; "" where it has it."""
    if before is None or value is None:
        return ""
    for types, wanted in ((dict, "a dict"), (bool, "True or False"), (list | tuple, "a list")):
        if isinstance(before, types):
            return "" if isinstance(value, types) else wanted
    return "a number" if isinstance(before, int | float) and isinstance(value, str | bool) else ""


def _get(node: Any, name: str) -> Any:
    return node[name] if isinstance(node, dict | Config) else node[int(name)]


def _has(node: Any, name: str) -> bool:
    if isinstance(node, list | tuple):
        return name.isdigit() and int(name) < len(node)
    return isinstance(node, dict | Config) and name in node


def _near(node: Any, name: str, more: Sequence[str] = ()) -> str:
    return did_you_mean(name, [*node, *more]) if isinstance(node, dict | Config) else ""


def check(cfg: Config) -> None:
    """Check what mmengine accepts but fails on when it trains or evaluates.

    Raises:
        ValueError: names the setting.
    """
    for key in COUNTS:
        value: Any = cfg
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict | Config) else None
        if not is_count(value):
            raise ValueError(f"{key}={value!r}: must be an integer, at least 1")
    rate = cfg.optim_wrapper.optimizer.get("lr")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or rate < 0:
        raise ValueError(f"optim_wrapper.optimizer.lr={rate!r}: must be a number, at least 0")


def is_count(value: Any) -> bool:
    """Return whether a setting is an integer, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
