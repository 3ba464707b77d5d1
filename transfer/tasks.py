"""Tasks of detection and segmentation: YAML files in transfer/configs. Needs neither framework."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli import config_names, find_config

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Tasks:
    """The tasks of a benchmark; each file opens with two comments, its command and its description.

    Attributes:
        folder: of the files.
        suffixes: of a user's own file.
    """

    folder: Path
    suffixes: tuple[str, ...] = (".yaml",)

    def names(self) -> list[str]:
        """Return the names of the tasks that come with the project."""
        return config_names(self.folder)

    def find(self, task: str | None) -> Path:
        """Return the file of --task, a name or a path.

        Raises:
            ValueError: no task, or neither a name nor a file.
        """
        if not task:
            raise ValueError(f"--task is missing: one of {', '.join(self.names())}, or a file of your own")
        return find_config("--task", task, self.folder, self.suffixes)

    def describe(self, task: str) -> str:
        """Return the description of a task: the second line of its file, up to the colon."""
        return (
            self.find(task).read_text(encoding="utf-8").splitlines()[1].removeprefix("# ").partition(":")[0].rstrip(".")
        )


DETECTION = Tasks(CONFIGS / "detection")
MMDET = Tasks(CONFIGS / "detection" / "mmdet", (".yaml", ".yml", ".py"))  # all that mmengine reads
SEGMENTATION = Tasks(CONFIGS / "segmentation", (".yaml", ".yml", ".py"))
