"""Settings that differ between two resolved configs, and what follows for the run of an earlier one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, and lists that hold mappings, to dotted keys; tuples become lists, as in YAML."""
    if isinstance(tree, Mapping):
        entries = [*tree.items()]
    elif isinstance(tree, list | tuple) and any(isinstance(entry, Mapping) for entry in tree):
        entries = [*enumerate(tree)]
    else:
        return {prefix: json.loads(json.dumps(tree))}
    parts = [flat(entry, f"{prefix}.{name}" if prefix else str(name)) for name, entry in entries]
    return {key: value for part in parts for key, value in part.items()}


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], ignore: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the flat settings that differ, `ignore` aside, with both values; None stands for one that is absent."""
    keys = sorted(key for key in {**before, **after} if key not in ignore)
    differ = [key for key in keys if (key in before, before.get(key)) != (key in after, after.get(key))]
    return {key: (before.get(key), after.get(key)) for key in differ}


def changed(before: Mapping[str, Any], after: Mapping[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """Return KEY=VALUE without spaces for each setting that differs; the arguments are those of `differences`."""
    return [f"{key}={new}".replace(" ", "") for key, (_, new) in differences(before, after, ignore).items()]


def should_resume(
    folder: Path, has_checkpoint: bool, config: Mapping[str, Any], options: Namespace, trained: str,
    ignore: Collection[str] = (),
) -> bool:  # fmt: skip
    """Return True to resume or evaluate the run in a folder, False to start fresh.

    Args:
        folder: of the run.
        has_checkpoint: whether it holds one.
        config: what the run's config.yaml must hold.
        options: holds `resume`, `eval_only`, `force` and `records`.
        trained: what a checkpoint holds, e.g. "detector".
        ignore: settings that may differ, by dotted key.

    Raises:
        ValueError: there is nothing to evaluate, the run was started with other settings, or no option decides what to
            do with it.
    """
    if not has_checkpoint:
        if options.eval_only:
            raise ValueError(f"--eval-only: {folder} holds no trained {trained}; leave the option out")
        return False
    wanted: bool = options.resume or options.eval_only
    if wanted or not options.force:
        # First: a run with other settings may well be on record.
        differ = differences(flat(yaml.safe_load((folder / "config.yaml").read_bytes())), flat(config), ignore)
        if differ:
            listed = ", ".join(f"{key} {old} → {new}" for key, (old, new) in [*differ.items()][:4])
            raise ValueError(
                f"{folder} was started with other settings ({listed}): restore them, name another --out, or replace "
                "it with --force"
            )
    if not wanted and not options.force:
        raise ValueError(
            f"{folder} holds a run that is not on record in {options.records}: --resume continues it, "
            "--force starts afresh"
        )
    return wanted
