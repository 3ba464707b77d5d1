"""A checkpoint with two sets of weights, of which --weights chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from converters import arch as archs

KIND = "choice of weights"
TRIED = "a file with the trained weights and their moving average, and --weights"


def write_two_sets(folder: Path) -> dict[str, Path]:
    """Write both.pth, and each of its sets alone as model.pth and ema.pth; return their paths by name."""
    torch.manual_seed(0)
    sets = {name: dict(archs.build("resnet18").state_dict()) for name in ("model", "ema")}
    files: dict[str, Any] = sets | {
        "both": {"arch": "resnet18", "state_dict": sets["model"], "state_dict_ema": sets["ema"]}
    }
    for name, content in files.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in files}


def assert_refuses_another(main: Any, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A set that the file does not hold is one line with those that it does."""
    capsys.readouterr()
    assert main([*given, "--weights=third", "--dry-run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert all(word in line for word in ("both.pth", "third", "ema", "model")), line
