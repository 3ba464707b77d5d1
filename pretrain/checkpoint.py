"""Checkpoints: written atomically, loaded under `weights_only=True`, enough for an exact continuation.

A checkpoint is a dict of tensors and Python builtins:

    format, version     "unimoco-suite", 1
    state_dict          encoder_q.*, encoder_k.*, queue, label_queue, index_queue, queue_ptr
    meta                method, arch, stem, label_ratio, epochs, step, image_size ... (see train.py)
    optimizer, scaler   their state_dicts
    rng                 the generators' states of every rank
    step                steps done
    config              the resolved configuration
    progress            what the monitor carries from step to step
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from common.distributed import gather_objects, rank
from common.files import write_atomically
from pretrain.config import rename_options

FORMAT, VERSION = "unimoco-suite", 1
LAST, PREVIOUS = "last.pth", "previous.pth"


class CheckpointError(ValueError):
    """A file that is no usable checkpoint of this project."""


def save_last(folder: Path, content: dict[str, Any]) -> Path:
    """Writes last.pth; the one before stays as previous.pth until the next call."""
    last, part = folder / LAST, folder / ".next.pth"
    write_atomically(part, lambda path: torch.save(content, path))
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(part, last)
    return last


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: no such file, truncated, not a checkpoint of this project, or of a later version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: truncated, or no torch checkpoint ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this project's pre-training; give one from runs/NAME/")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path}: format version {content['version']}, this code reads up to {VERSION}")
    content["config"] = rename_options(content["config"])
    return content


def find_last(folder: Path) -> tuple[dict[str, Any], Path, list[str]] | None:
    """The newest checkpoint of a run folder that can be read.

    Returns:
        (content, its path, complaints about newer files that cannot be read); None where the folder has none.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    candidates = [path for path in (folder / LAST, folder / ".next.pth", folder / PREVIOUS) if path.exists()]
    candidates += sorted(folder.glob("epoch_*.pth"), reverse=True)
    complaints: list[str] = []
    for path in candidates:
        try:
            return load(path), path, complaints
        except CheckpointError as error:
            complaints.append(str(error))
    if complaints:
        raise CheckpointError("; ".join(complaints) + f"; delete {folder} to start afresh")
    return None


def random_states() -> list[Any]:
    """States of torch's generators on every rank, in rank order. Views, order and shuffling need none."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return gather_objects(state)


def restore_random_states(states: list[Any]) -> bool:
    """Sets this rank's generators. False where the checkpoint has none for this rank (another world size)."""
    if rank() >= len(states):
        return False
    state = states[rank()]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True
