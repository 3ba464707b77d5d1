"""Semantic segmentation with mmsegmentation, used as a library: what transfer/segment.py is made of.

Only the modules below import mmseg; this one does not.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "configs" / "segmentation"
PACKAGES = ("onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation")  # whose versions go into a record


def task_names() -> list[str]:
    """Return the tasks that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def headline(task: str) -> str:
    """Return the first line of a task's config."""
    return (FOLDER / f"{task}.py").read_text().splitlines()[0].strip('" ')


@contextmanager
def quiet(prints: bool = True) -> Iterator[None]:
    """Keep the notes of mmseg and torch on what is deprecated off the screen.

    Args:
        prints: let what is printed through; imports of mmseg print too.
    """
    with warnings.catch_warnings(), nullcontext() if prints else redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
