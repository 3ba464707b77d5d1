"""What registry.yaml says: the project's tasks, and the titles of tables, metrics, methods and published tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Task:
    """A benchmark of the project.

    Attributes:
        title: its name in tables.
        table: the table that shows it, a key of TABLES.
        metrics: what tables show of it, as named in records, the leading metric first.
        paper: the task of published.csv that it stands in for at small scale, if any.
    """

    title: str
    table: str
    metrics: list[str]
    paper: str | None = None


_CONTENT: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("registry.yaml").read_bytes())
TABLES, SUMMARY, METRICS = _CONTENT["tables"], _CONTENT["summary"], _CONTENT["metrics"]
METHODS, PUBLISHED_AS, PAPER_TITLES = _CONTENT["methods"], _CONTENT["published_as"], _CONTENT["papers"]
TASKS = {name: Task(**fields) for name, fields in _CONTENT["tasks"].items()}  # type: ignore[arg-type]


def task_title(name: str) -> str:
    """Return the title of a task; of an unknown one its name."""
    return TASKS[name].title if name in TASKS else name


def task_order(name: str) -> tuple[int, str]:
    """Return the sort key of a task: unknown ones follow those of the registry."""
    return (list(TASKS).index(name) if name in TASKS else len(TASKS)), name
