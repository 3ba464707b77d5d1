"""Settings that differ between two resolved configs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any


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
