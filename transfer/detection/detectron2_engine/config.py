"""Resolve a task: detectron2's configuration of one run from the YAML file, the backbone, the devices and the options.

Later steps override earlier ones: the task's YAML file, the network of the backbone, the schedule for the devices, and
the KEY VALUE pairs of the command line. The result is checked and frozen.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from common.precision import autocast_dtype
from converters import Backbone
from converters.targets import TARGETS
from transfer.changes import flat
from transfer.detection.devices import Devices
from transfer.scaling import Schedule, comparison, for_devices
from transfer.tasks import DETECTION

NETWORK = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS")  # of MODEL.RESNETS, set by the backbone
FROZEN = "MODEL.BACKBONE.FREEZE_AT", 5  # the whole backbone
# Settings that the metrics do not depend on, or that a record holds elsewhere.
NOT_RECORDED = (
    "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "OUTPUT_DIR", "SEED", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.REFERENCE_WORLD_SIZE", "TASK.FILES", "TASK.HEADLINE", "TASK.NAME", "TASK.OVERLAP", "TEST.EVAL_PERIOD",
    "VERSION",
)  # fmt: skip


def defaults() -> CfgNode:
    """Return detectron2's defaults with our node TASK.

    TASK.DATA: data set tree (configs/layouts.yaml), "fashion", or "own", a user's. TASK.HEADLINE: the main metric.
    TASK.SCENES: training scenes, test scenes, size and seed of Fashion Scenes. TASK.PRECISION: of training; fp32, bf16,
    or auto, which is bf16 where the device computes it fast. SOLVER.AMP.ENABLED is detectron2's own fp16. Of a user's
    data set, FILES are annotations and images of train and of val, IDENTITY is a hash of their content, NAME is for
    people, and OVERLAP says which test images are training images.
    """
    cfg = get_cfg()
    cfg.TASK = CfgNode({
        "DATA": "", "HEADLINE": "bbox/AP", "SCENES": [], "PRECISION": "fp32", "FILES": [], "IDENTITY": "", "NAME": "",
        "OVERLAP": "",
    })  # fmt: skip
    return cfg


def read_task(task: str) -> CfgNode:
    """Read a task as its YAML file states it.

    Args:
        task: a name or a path.

    Raises:
        ValueError: no such task, or a file with unknown settings.
    """
    file, cfg = DETECTION.find(task), defaults()
    try:
        cfg.merge_from_file(str(file), allow_unsafe=False)
    except (AssertionError, AttributeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not a config of detectron2: {_one_line(error)}") from error
    if cfg.SOLVER.REFERENCE_WORLD_SIZE < 1:
        raise ValueError(f"{file}: set SOLVER.REFERENCE_WORLD_SIZE to the number of devices that the schedule is for")
    return cfg


def as_published(task: str) -> CfgNode:
    """Return a task as it is published: for its reference number of devices and its own network."""
    cfg = read_task(task)
    if cfg.SOLVER.REFERENCE_WORLD_SIZE == 1:
        _replace_sync_batch_norm(cfg)
    return cfg


def resolve(
    task: str, backbone: Backbone, devices: Devices, seed: int, overrides: Sequence[str] = (), batch: int | None = None,
    scale: bool = True,
) -> tuple[CfgNode, str]:  # fmt: skip
    """Resolve the configuration of one run.

    Args:
        task: a name or the path of a YAML file.
        backbone: what is measured; its network replaces the task's.
        devices: what it runs on.
        seed: of everything random.
        overrides: KEY VALUE KEY VALUE ...
        batch: images per iteration over all devices; None: per device as many as published.
        scale: scale the schedule to the batch.

    Returns:
        The frozen configuration, and a description of what was changed.

    Raises:
        ValueError: names the setting that is wrong and the fix.
    """
    cfg = read_task(task)
    changes = [*_set_network(cfg, backbone), *_scale_schedule(cfg, devices, batch, scale)]
    if devices.kind == "cpu":
        cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = devices.kind
    _override(cfg, overrides, scale)
    cfg.SEED = seed
    cfg.MODEL.WEIGHTS = ""  # the backbone is loaded and compared by weights.py
    if devices.world == 1 and (swapped := _replace_sync_batch_norm(cfg)):
        changes.append(f"one process: BN replaces SyncBN in {', '.join(swapped)}")
    _set_precision(cfg)
    _check(cfg, backbone, devices)
    cfg.freeze()
    return cfg, "\n".join(changes)


def _set_network(cfg: CfgNode, backbone: Backbone) -> list[str]:
    """Set MODEL.RESNETS to the backbone's network; return what changed."""
    settings = expected_settings(backbone)
    changed = []
    for name in NETWORK:
        key, value = f"MODEL.RESNETS.{name}", settings[f"MODEL.RESNETS.{name}"]
        if cfg.MODEL.RESNETS[name] != value:
            changed.append(f"{key} {cfg.MODEL.RESNETS[name]} → {value}")
            cfg.MODEL.RESNETS[name] = value
    return [f"network of the checkpoint ({backbone.arch}): {', '.join(changed)}"] if changed else []


def expected_settings(backbone: Backbone) -> dict[str, Any]:
    """Return the settings of detectron2 that a backbone needs, by dotted key, as converters writes them.

    Raises:
        ValueError: detectron2 has no such network.
    """
    target = TARGETS["detectron2"]
    target.check(backbone)
    assert target.settings is not None
    text = target.settings[1](backbone.arch, Path("backbone.pkl"), "")
    return {key: value for key, value in flat(yaml.safe_load(text)).items() if key != "VERSION"}


def _scale_schedule(cfg: CfgNode, devices: Devices, batch: int | None, scale: bool) -> list[str]:
    solver = cfg.SOLVER
    before = Schedule(solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS, tuple(solver.STEPS), solver.MAX_ITER)
    published = solver.REFERENCE_WORLD_SIZE
    solver.REFERENCE_WORLD_SIZE = 0  # else detectron2's trainer would scale again
    if not scale:
        if batch is not None:
            raise ValueError("--batch changes the schedule and --no-scale keeps it: leave one of them out")
        return [f"--no-scale: the schedule for {published} devices is kept"] if devices.world != published else []
    after = for_devices(before, published, devices.world, batch)
    solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS = after.batch, after.lr, after.warmup
    solver.STEPS, solver.MAX_ITER = after.steps, after.iterations
    if after == before:
        return []
    head = (
        f"schedule: published for {before.batch} images on {published} device{'s' * (published > 1)}, "
        f"scaled to {after.batch} on {devices.world}; --no-scale keeps it"
    )
    return [f"{head}\n{comparison(before, after)}"]


def _override(cfg: CfgNode, overrides: Sequence[str], scale: bool) -> None:
    if len(overrides) % 2:
        raise ValueError(f"{' '.join(overrides)}: settings come in pairs, KEY VALUE")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key == "SOLVER.IMS_PER_BATCH" and scale:
            raise ValueError(
                f"{key} {value}: use --batch {value}, which scales the schedule with it, or add --no-scale"
            )
        if key in ("SEED", "MODEL.WEIGHTS", "OUTPUT_DIR", "MODEL.DEVICE"):
            raise ValueError(f"{key} {value}: use --seeds, --ckpt, --out and --device")
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(f"{key} {value}: not a setting of detectron2 ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).strip("'\"")


def _replace_sync_batch_norm(cfg: CfgNode) -> list[str]:
    """Replace synchronised batch norm, which needs several processes, by BN; return the keys."""
    synced = sorted(k for k, v in flat(cfg).items() if k.endswith(".NORM") and v in ("SyncBN", "naiveSyncBN"))
    for key in synced:
        cfg.merge_from_list([key, "BN"])
    return synced


def _set_precision(cfg: CfgNode) -> None:
    if cfg.TASK.PRECISION not in ("fp32", "bf16", "auto"):
        raise ValueError(f"TASK.PRECISION {cfg.TASK.PRECISION}: use fp32, bf16 or auto")
    if cfg.TASK.PRECISION == "auto":
        if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():  # --dry-run plans for GPUs elsewhere
            raise ValueError("TASK.PRECISION auto depends on the GPU: add TASK.PRECISION bf16 or fp32")
        fast = autocast_dtype("auto", torch.device(cfg.MODEL.DEVICE))
        cfg.TASK.PRECISION = "fp32" if fast is None else "bf16"
    if cfg.SOLVER.AMP.ENABLED and (cfg.MODEL.DEVICE != "cuda" or cfg.TASK.PRECISION != "fp32"):
        raise ValueError("SOLVER.AMP.ENABLED is fp16 on a GPU; elsewhere, or for bf16, use TASK.PRECISION bf16")


def _check(cfg: CfgNode, backbone: Backbone, devices: Devices) -> None:
    found = flat(cfg)
    for key, wanted in expected_settings(backbone).items():
        if found[key] != wanted and (key, found[key]) != FROZEN:
            raise ValueError(
                f"{key} is {found[key]}, and {backbone.source.path} ({backbone.arch}) was trained for {wanted}: "
                f"leave {key} out"
            )
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH % devices.world:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not a multiple of {devices.world} processes")
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER {solver.MAX_ITER}: must be at least 1")
    if any(step >= solver.MAX_ITER for step in solver.STEPS):  # of a shortened run
        solver.STEPS = tuple(step for step in solver.STEPS if step < solver.MAX_ITER)


def for_record(cfg: CfgNode) -> dict[str, Any]:
    """Return what the metrics depend on: each setting that is not detectron2's default, by dotted key."""
    before = flat(defaults())
    return {key: value for key, value in flat(cfg).items() if key not in NOT_RECORDED and value != before.get(key)}


def with_output(cfg: CfgNode, folder: Path) -> CfgNode:
    """Return the configuration with its run folder set."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def packages() -> tuple[str, ...]:
    """Return the distributions whose versions are recorded; detectron2's has several names."""
    installed = importlib.metadata.packages_distributions()["detectron2"]
    return (*dict.fromkeys(installed), "faster-coco-eval", "pycocotools")
