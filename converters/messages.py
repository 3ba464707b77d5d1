"""Lists of tensor names, shortened for messages."""

from collections.abc import Mapping


def shorten(names: list[str], limit: int = 4) -> str:
    """Join the first `limit` names and count the rest."""
    return ", ".join(names[:limit]) + (f", … {len(names) - limit} more" if len(names) > limit else "")


def summarize(groups: Mapping[str, list[str]]) -> str:
    """Return "2 missing: a, b; 1 left over: c" for names grouped by what is wrong with them, "" for none."""
    return "; ".join(f"{len(names)} {problem}: {shorten(names)}" for problem, names in groups.items() if names)
