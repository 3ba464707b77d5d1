"""Names from files of unknown origin, for messages and generated files."""

import json
from collections.abc import Mapping
from pathlib import Path

from common.cli import printable

_SHOWN = 200  # characters of a name


def literal(text: str | Path) -> str:
    """Return a string literal of both Python and YAML, which no character can end and no template language reads."""
    quoted = json.dumps(str(text), ensure_ascii=False)
    # Not `printable`, which shows a byte that is not UTF-8 as the byte: a literal must give the name back.
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in quoted)
    return "".join(escaped).replace("{{", r"\x7b\x7b")


def shorten(names: list[str], limit: int = 4) -> str:
    """Join the first `limit` names, control characters escaped and long ones cut, and count the rest."""
    shown = [printable(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…") for name in names[:limit]]
    return ", ".join(shown) + (f", … {len(names) - limit} more" if len(names) > limit else "")


def summarize(groups: Mapping[str, list[str]]) -> str:
    """Return "2 missing: a, b; 1 left over: c" for names grouped by what is wrong with them, "" for none."""
    return "; ".join(f"{len(names)} {problem}: {shorten(names)}" for problem, names in groups.items() if names)
