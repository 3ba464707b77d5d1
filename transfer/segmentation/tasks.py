"""Tasks: mmengine configs in transfer/configs/segmentation, brought to the backbone, the options and the processes."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from transfer.scaling import Schedule, comparison, for_devices
from transfer.segmentation import FOLDER, task_names

# Variables of a config file that have been copied to where they count: changing them later would change nothing.
SHORTHANDS = (
    "norm_cfg",
    "train_pipeline",
    "test_pipeline",
    "metainfo",
    "crop_size",
    "dataset_type",
    "img_scale",
    "class_weight",
)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def read(task: str) -> Config:
    """Read a task by name, or a config of the user's own by path.

    Raises:
        ValueError: there is none of that name.
    """
    path = Path(task) if task.endswith(".py") else FOLDER / f"{task}.py"
    if not path.is_file():
        near = difflib.get_close_matches(task, task_names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--task {task}: there is none{hint} (one of {', '.join(task_names())}, or a config file)")
    cfg = Config.fromfile(path)
    for name in SHORTHANDS:
        cfg.pop(name, None)
    # What a config of mmseg's own brings along, and this suite does in its way.
    cfg.val_evaluator = cfg.test_evaluator = {**cfg.val_evaluator, "type": "ClassIoU"}
    cfg.default_hooks.pop("visualization", None)
    return cfg


def override(cfg: Config, assignments: Sequence[str]) -> None:
    """Apply --cfg-options: KEY=VALUE with dots in the key, as mmengine's tools take them.

    A new key is taken only where a constructor will check it, in a dict with a `type`: a typing mistake must not
    become an experiment with the default.

    Raises:
        ValueError: no KEY=VALUE, or a key that the config does not have.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("options", nargs="*", action=DictAction)
    for text in assignments:
        key, found, _ = text.partition("=")
        if not found or not key:
            raise ValueError(f"--cfg-options {text}: must be KEY=VALUE")
        *parents, last = key.split(".")
        place: Any = cfg
        for number, name in enumerate(parents):
            place = _item(place, name, ".".join(parents[: number + 1]))
        known = last in place if isinstance(place, dict | Config) else last.isdigit() and int(last) < len(place)
        if not known and not (isinstance(place, dict) and "type" in place):
            raise ValueError(f"--cfg-options {key}: the config has no such key{_near(place, last)}")
        cfg.merge_from_dict(parser.parse_args([text]).options)


def _item(place: Any, name: str, told: str) -> Any:
    if isinstance(place, list | tuple) and name.isdigit() and int(name) < len(place):
        return place[int(name)]
    if isinstance(place, dict | Config) and name in place:
        return place[name]
    raise ValueError(f"--cfg-options: the config has no {told}{_near(place, name)}")


def _near(place: Any, name: str) -> str:
    near = difflib.get_close_matches(name, list(place), 1) if isinstance(place, dict | Config) else []
    return f"; did you mean {near[0]}?" if near else ""


def datasets(loader: Any) -> Iterator[Any]:
    """Yield the data sets of a loader's config, those inside wrappers such as ConcatDataset."""
    inner = [loader.dataset]
    while inner:
        dataset = inner.pop(0)
        wrapped = dataset.get("datasets", [dataset["dataset"]] if "dataset" in dataset else [])
        inner += wrapped
        if not wrapped:
            yield dataset


def schedule_of(cfg: Config) -> Schedule:
    """Return the schedule that a task's config states: of all its processes together, without accumulation."""
    steps = [step for scheduler in cfg.param_scheduler for step in scheduler.get("milestones", ())]
    batch = cfg.train_dataloader.batch_size * cfg.get("reference_processes", 1)
    return Schedule(batch, float(cfg.optim_wrapper.optimizer.lr), 0, tuple(steps), cfg.train_cfg.max_iters)


def rescale(cfg: Config, processes: int, batch: int | None, accumulate: int, scale: bool) -> str:
    """Bring a config to another number of processes; return what changed, for the screen.

    Args:
        cfg: as published.
        processes: number there are.
        batch: images of an optimiser step over all processes; None gives each as many as published.
        accumulate: mmengine's iterations to an optimiser step.
        scale: whether the schedule follows the processes; else it is kept, its batch spread over them.

    Raises:
        ValueError: a batch that cannot be shared evenly, or one beside --no-scale.
    """
    if accumulate < 1:
        raise ValueError(f"--accumulate {accumulate}: must be at least 1")
    if batch is not None and not scale:
        raise ValueError("--batch changes the schedule and --no-scale keeps it: leave one of them out")
    before = schedule_of(cfg)
    wanted = batch if scale else before.batch
    after = for_devices(before, cfg.get("reference_processes", 1), processes * accumulate, wanted)
    cfg.train_dataloader.batch_size = after.batch // (processes * accumulate)
    rate, stretch = after.lr / before.lr, after.iterations * accumulate / before.iterations
    cfg.optim_wrapper.optimizer.lr = after.lr
    cfg.optim_wrapper.accumulative_counts = accumulate
    cfg.train_cfg.max_iters = after.iterations * accumulate
    cfg.train_cfg.val_interval = max(1, round(cfg.train_cfg.val_interval * stretch))
    cfg.default_hooks.checkpoint.interval = max(1, round(cfg.default_hooks.checkpoint.interval * stretch))
    for scheduler in cfg.param_scheduler:
        for key in ("begin", "end"):
            if key in scheduler:
                scheduler[key] = round(scheduler[key] * stretch)
        if "milestones" in scheduler:
            scheduler.milestones = [step * accumulate for step in after.steps]
        if "eta_min" in scheduler:
            scheduler.eta_min *= rate
    return comparison(before, after)


def mixed_precision(cfg: Config, cuda: bool) -> None:
    """Train under autocast: float16 on a GPU, with its loss scaled, bfloat16 on the CPU. Evaluation is in float32."""
    cfg.optim_wrapper.type = "AmpOptimWrapper" if cuda else "CpuAmpOptimWrapper"


def limit_workers(cfg: Config) -> None:
    """Start no more data workers than there are cores to run them."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    for name in LOADERS:
        cfg[name].num_workers = min(cfg[name].num_workers, max(0, cores - 1))
        cfg[name].persistent_workers = cfg[name].num_workers > 0


def plain_batch_norm(cfg: Any) -> int:
    """Write BN for SyncBN everywhere in a config; return how often."""
    count = 0
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, dict | list | tuple):
            count += plain_batch_norm(value)
    if isinstance(cfg, dict) and cfg.get("type") == "SyncBN":
        cfg["type"] = "BN"
        count += 1
    return count


def figures_depend_on(cfg: Config, batch: int) -> dict[str, Any]:
    """Return what of a config can change the figures: no absolute paths, workers or intervals.

    Args:
        cfg: a config as it is run, its data sets not yet found.
        batch: images of an optimiser step, over all processes.
    """
    kept = ("model", "optim_wrapper", "param_scheduler", "val_evaluator", "scenes")
    told = {name: value for name, value in cfg.to_dict().items() if name in kept}
    told["max_iters"] = cfg.train_cfg.max_iters
    for name in LOADERS[:2]:
        told[name] = {key: value for key, value in cfg[name].to_dict().items() if key in ("sampler", "dataset")}
    return {**told, "batch": batch}


def protocol(cfg: Config, batch: int) -> str:
    """Return the settings in a line of words."""
    optimizer = cfg.optim_wrapper.optimizer
    crop = "x".join(map(str, cfg.model.data_preprocessor.size))
    schedule = "/".join(scheduler.type for scheduler in cfg.param_scheduler)
    accumulate = cfg.optim_wrapper.get("accumulative_counts", 1)
    return (
        f"{cfg.model.decode_head.type}, {cfg.train_cfg.max_iters // accumulate} iterations of {batch}, "
        f"crop {crop}, {optimizer.type} lr {optimizer.lr:g} wd {optimizer.get('weight_decay', 0):g} {schedule}, "
        f"{cfg.model.test_cfg.mode} image, single scale"
    )
