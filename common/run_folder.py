"""The folder of a run: configuration, command line, environment, metrics, TensorBoard events."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from common.distributed import on_first_rank, rank, world_size
from common.files import append_text, lock_folder, naming, write_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python")
# "Dirty" means that a tracked file that decides what runs has changed; records, tables and pages do not.
CODE = ("*.py", "*.sh", "*.yaml", "*.toml", "*Snakefile", "requirements*.txt")


def environment(device: torch.device, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return versions (also of more packages), machine and git commit with a flag for uncommitted changes."""
    return {
        "versions": {name: version(name) for name in (*PACKAGES, *packages)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        **git_state(),
    }


def version(package: str) -> str:
    """Return the version of an installed package. OpenCV is distributed under several names, and by systems under none.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "opencv-python":
            raise
        return cv2.__version__


def git_state() -> dict[str, Any]:
    """Return the commit of this checkout and whether its code has uncommitted changes; None outside of git."""
    # The variables of e.g. a hook name another repository. In a checkout of another user git wants to be asked to trust
    # what it finds; it is the code that runs here already.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    code = Path(__file__)

    def git(*arguments: str) -> str | None:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", *arguments], cwd=code.parent, env=environment, capture_output=True,
            encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        if git("ls-files", "--error-unmatch", code.name) is None:  # a repository around a copy is not the code's
            return {"git_commit": None, "git_dirty": None}
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", *(f":(top){pattern}" for pattern in CODE))
    except FileNotFoundError:  # no git on this machine
        commit, changes = None, None
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


class RunFolder:
    """Writes the files of a run on rank 0; does nothing on other ranks."""

    def __init__(self, path: Path) -> None:
        self.path, self.writes = path, rank() == 0
        self.metrics_file = path / "metrics.jsonl"
        self._tensorboard: SummaryWriter | None = None

    def start(
        self,
        config: dict[str, Any],
        device: torch.device,
        step: int,
        labels: str | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        """Create or continue the folder at the given step; metrics of later steps are deleted.

        Args:
            config: resolved configuration.
            device: where the run computes.
            step: steps done so far.
            labels: names of the images that keep their label, one per line; None where there is no such choice.
            packages: distributions whose versions are recorded besides the usual ones.
        """
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        if labels is not None:
            write_text(self.path / "labels.txt", labels)
        write_text(self.path / "environment.json", json.dumps(environment(device, packages), indent=2) + "\n")
        append_text(
            self.path / "command.txt", f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} step {step}: {' '.join(sys.argv)}\n"
        )
        rows = [json.loads(line) for line in self._metric_lines()]
        kept = [json.dumps(row) for row in rows if row["step"] <= step]
        write_text(self.metrics_file, "".join(f"{line}\n" for line in kept))
        threading.excepthook = _report_unless_io
        with naming(self.path / "tensorboard"):
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def _metric_lines(self) -> list[str]:
        if not self.metrics_file.exists():
            return []
        *lines, rest = self.metrics_file.read_text(encoding="utf-8").split("\n")
        # A killed run may leave half a line at the end; its step will be repeated.
        return lines if not rest else [line for line in lines if line]

    def add_metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Write one flat line of metrics.jsonl, and TensorBoard scalars."""
        if not self.writes:
            return
        row = {"step": step, "epoch": round(epoch, 6)} | {
            name: value if math.isfinite(value) else repr(value) for name, value in values.items()
        }
        append_text(self.metrics_file, json.dumps(row) + "\n")
        assert self._tensorboard is not None
        with naming(self.path / "tensorboard"):
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._tensorboard is not None:
            with naming(self.path / "tensorboard"):
                self._tensorboard.close()


def _report_unless_io(failure: threading.ExceptHookArgs) -> None:
    """Report what ends a thread; not an OSError, which TensorBoard's thread also hands to the next write."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


@contextmanager
def exclusive(folder: Path, advice: str) -> Iterator[None]:
    """Use the folder of a run alone; see `lock_folder`, which rank 0 calls. Where it is locked, every rank raises."""
    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(lock_folder(folder, advice)))
        yield
