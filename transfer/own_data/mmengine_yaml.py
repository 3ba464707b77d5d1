"""Configs of mmengine in YAML."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.Dumper):
    """Writes no anchors, and tuples as such: mmcv's transforms take no lists."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: nothing is written as a reference to an earlier value."""
        return True


def dump(settings: dict[str, Any]) -> str:
    """Return a config as the text of a file."""
    return yaml.dump(settings, sort_keys=False, width=120, allow_unicode=True, Dumper=_Dumper)
