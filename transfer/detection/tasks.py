"""Detection tasks: YAML files in transfer/configs/detection. Needs no detection framework."""

from __future__ import annotations

from pathlib import Path

from common.cli import config_names, find_config

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"


def task_names() -> list[str]:
    """Return the names of the tasks that come with the project."""
    return config_names(CONFIGS)


def find_task(task: str | None) -> Path:
    """Return the YAML file of --task, a name or a path.

    Raises:
        ValueError: no task, or neither a name nor a file.
    """
    if not task:
        raise ValueError(f"--task is missing: one of {', '.join(task_names())}, or a YAML file")
    return find_config("--task", task, CONFIGS)


def describe(task: str) -> str:
    """Return the description of a task: the second line of its YAML file, up to the colon."""
    return find_task(task).read_text().splitlines()[1].removeprefix("# ").partition(":")[0].rstrip(".")
