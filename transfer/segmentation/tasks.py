"""Segmentation tasks: mmengine configs in transfer/configs/segmentation. Needs no mmseg."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

from common.cli import config_names, find_config

CONFIGS = Path(__file__).parents[1] / "configs" / "segmentation"
HEADLINE = "mIoU"  # main metric of every task
PACKAGES = ("onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation")  # whose versions are recorded


def task_names() -> list[str]:
    """Return the names of the tasks that come with the project."""
    return config_names(CONFIGS, ".py")


def find_task(task: str | None) -> Path:
    """Return the config file of --task, a name or a path.

    Raises:
        ValueError: no task, or neither a name nor a file.
    """
    if not task:
        raise ValueError(f"--task is missing: one of {', '.join(task_names())}, or a config file")
    return find_config("--task", task, CONFIGS, ".py")


def describe(task: str) -> str:
    """Return the description of a task: the first line of its config."""
    return find_task(task).read_text().splitlines()[0].strip('" ')


@contextmanager
def quiet(prints: bool = True) -> Iterator[None]:
    """Suppress the deprecation warnings of mmseg and torch.

    Args:
        prints: whether to show what is printed; importing mmseg prints too.
    """
    with warnings.catch_warnings(), nullcontext() if prints else redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
