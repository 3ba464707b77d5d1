"""Checkpoints: written atomically, loaded under `weights_only=True`, enough for an exact continuation.

A checkpoint is a dict of tensors and Python builtins:

    format, version     "unimoco-suite", 1
    state_dict          encoder_q.*, encoder_k.*, queue, label_queue, index_queue, queue_ptr
    meta                backbone_id, method, arch, stem, label_ratio, seed, label_seed, epochs ... (see `describe`)
    optimizer, scaler   their state_dicts
    skipped_steps       fp16 steps that were skipped on overflow
    rng                 states of the generators of every rank
    step                steps done
    config              the resolved configuration
    progress            what the monitor carries from step to step
    earlier_schedules   where --resume FILE went on with another schedule: the step, and what changed
    image_hashes        which images were seen (common/seen.py)
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from common.distributed import gather_objects, rank, world_size
from common.files import naming, write_tensors
from common.images import UNLABELLED
from common.run_folder import git_state
from common.seen import KEY
from pretrain.config import Config, backbone_id, differing_keys, method, only_schedule, recipe_id, rename_options
from pretrain.data import TrainingData
from pretrain.engine import Training
from pretrain.monitor import Monitor, log

FORMAT, VERSION = "unimoco-suite", 1
LAST, PREVIOUS = "last.pth", "previous.pth"


class CheckpointError(ValueError):
    """A file is not a usable checkpoint of this project."""


class Checkpoints:
    """Writes the checkpoints of a run, the state of its training and monitor, into its folder."""

    def __init__(self, t: Training, monitor: Monitor, data: TrainingData, folder: Path) -> None:
        self.t, self.monitor, self.data, self.folder = t, monitor, data, folder
        precision = str(t.dtype or torch.float32).removeprefix("torch.")
        ran_as = {"precision": precision, "compiled": t.compiled}
        self.fixed_meta = describe(t.config, data) | ran_as if rank() == 0 else {}

    def save(self, name: str | None = None) -> None:
        """Write last.pth, or `name`, on rank 0; all ranks call it.

        Raises:
            NonFiniteError: a loss so far is not finite; nothing is written.
        """
        t = self.t
        self.monitor.check_finite()
        t.average_statistics()
        rng = random_states()
        if rank() != 0:
            return
        content = {
            "format": FORMAT,
            "version": VERSION,
            "state_dict": t.model.state_dict(),
            "meta": self.meta,
            "optimizer": t.optimizer.state_dict(),
            "scaler": t.scaler.state_dict(),
            "skipped_steps": int(t.skipped_steps),
            "rng": rng,
            "step": t.step,
            "config": t.config.as_dict(),
            "progress": self.monitor.state(),
            "earlier_schedules": t.earlier_schedules,
            KEY: self.data.hashes,
        }
        if name is None:
            save_last(self.folder, content)
        else:
            write_tensors(self.folder / name, content)

    def due(self) -> bool:
        """Return whether last.pth is written after the last step."""
        every = self.t.config.checkpoint.last_every or self.t.steps_per_epoch
        return self.t.step % every == 0 or self.t.step == self.t.steps

    @property
    def meta(self) -> dict[str, Any]:
        """Facts of the run at this step; on rank 0."""
        config, images, epochs = self.t.config, self.data.images, self.t.epoch
        identity = {
            "backbone_id": backbone_id(config, images, self.data.kept, epochs, self.t.earlier_schedules),
            "recipe_id": recipe_id(config, images, epochs, self.t.earlier_schedules),
        }
        return {**identity, **self.fixed_meta, "epochs": epochs, "step": self.t.step}


def describe(config: Config, data: TrainingData) -> dict[str, Any]:
    """Return facts of a pre-training for readers of its checkpoints; builtins."""
    kept, labelled = data.kept, int((data.kept.labels != UNLABELLED).sum())
    return {
        "method": method(config),
        "arch": config.model.arch,
        "stem": config.model.stem,
        "image_size": config.views.size,
        "label_ratio": labelled / len(kept.labels),
        "labelled": labelled,
        "images": len(kept.labels),
        "labels_sha256": kept.sha256,
        "planned_epochs": config.optim.epochs,
        "seed": config.seed,
        "label_seed": config.labels.seed,
        "data": data.images.identity,
        **({"data_check": "skipped"} if config.skip_check else {}),
        **git_state(),
    }


def save_last(folder: Path, content: dict[str, Any]) -> Path:
    """Write last.pth; the one before stays as previous.pth until the next call."""
    last, part = folder / LAST, folder / ".next.pth"
    with naming(last, part):
        write_tensors(part, content)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(part, last)
    return last


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors on the CPU, options under their names of today.

    Raises:
        CheckpointError: the file is missing, truncated, not of this project, or of a later version.
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
    progress = content["progress"]
    progress["warned"] = progress.pop("said", progress.get("warned"))  # of earlier versions
    return content


def find_checkpoint(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the content of the checkpoint that a run continues from; None to start at step 0.

    With `resume` a file, that is the file, unless the run's own folder has a later one: then the file is where the
    run began, as it is for a job that Slurm starts again. A file may be continued with another schedule.

    Raises:
        ValueError: the run exists and `resume` is "never"; its configuration differs; no checkpoint can be read.
    """
    own = find_last(folder)
    if config.resume not in ("auto", "never"):
        start = load(Path(config.resume))
        if own and own["step"] > start["step"]:
            steps = f"step {own['step']} after step {start['step']}"
            log(f"{folder} has a later checkpoint than {config.resume} ({steps}); continuing from it")
        else:
            own = start
            if config.optim.epochs > start["meta"]["epochs"] and only_schedule(start["config"], config.as_dict()):
                return own
    elif own and config.resume == "never":
        raise ValueError(f"{folder} holds a run already: give another --name, or --resume auto to continue it")
    different = differing_keys(own["config"], config.as_dict()) if own else []
    if own and different:
        longer = config.resume == "auto" and only_schedule(own["config"], config.as_dict())
        way = f"; or train on from it with another schedule: --resume {folder / LAST} --name NEW" * longer
        raise ValueError(
            f"{folder} was run with another configuration ({'; '.join(different)}): give another --name, "
            f"or the old options to continue it{way}"
        )
    return own


def find_last(folder: Path) -> dict[str, Any] | None:
    """Return the content of the newest readable checkpoint of a run folder; None where the folder has none.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    candidates = [path for path in (folder / LAST, folder / ".next.pth", folder / PREVIOUS) if path.exists()]
    candidates += sorted(folder.glob("epoch_*.pth"), reverse=True)
    complaints: list[str] = []
    for path in candidates:
        try:
            content = load(path)
        except CheckpointError as error:
            complaints.append(str(error))
            continue
        for complaint in complaints:
            log(f"warning: {complaint}; continuing from {path}")
        return content
    if complaints:
        raise CheckpointError("; ".join(complaints) + f"; delete {folder} to start afresh")
    return None


def restore(t: Training, saved: dict[str, Any]) -> None:
    """Put a checkpoint's state into a training."""
    t.model.load_state_dict(saved["state_dict"])
    t.optimizer.load_state_dict(saved["optimizer"])
    t.scaler.load_state_dict(saved["scaler"])
    t.skipped_steps.fill_(saved.get("skipped_steps", 0))
    t.step = t.averaged_at = saved["step"]
    t.earlier_schedules = saved.get("earlier_schedules", [])
    if changed := differing_keys(saved["config"], t.config.as_dict()):
        t.earlier_schedules = [*t.earlier_schedules, {"step": t.step, "changed": changed}]
    states = saved["rng"]
    if rank() < len(states):
        torch.set_rng_state(states[rank()]["cpu"])
        if "cuda" in states[rank()] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[rank()]["cuda"])
    if len(states) != world_size():
        log(
            f"warning: saved by {len(states)} processes, resumed by {world_size()}: "
            "the same experiment, but not to the last bit"
        )


def random_states() -> list[Any]:
    """Return the states of torch's generators on every rank, in rank order. Views, order and shuffling need none."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return gather_objects(state)
