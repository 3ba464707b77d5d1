"""The names of the tasks, without detectron2."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs" / "detection"
TASKS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("base"))


def config_file(task: str) -> Path:
    """The YAML of a task.

    Raises:
        ValueError: no such task.
    """
    if task not in TASKS:
        raise ValueError(f"--task {task}: choose one of {', '.join(TASKS)}")
    return CONFIGS / f"{task}.yaml"


def headline(task: str) -> str:
    """What a task is: the second line of its YAML, up to the colon."""
    return config_file(task).read_text().splitlines()[1].removeprefix("# ").partition(":")[0].rstrip(".")
