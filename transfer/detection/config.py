"""Tasks: detectron2's configuration of one run, from the task's YAML, the backbone, the devices and the command line.

The order is: transfer/configs/detection/TASK.yaml, the network of the backbone, the schedule for the devices there
are, and KEY VALUE pairs, which are taken as they are. What comes out is checked and frozen.
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
from transfer.detection.devices import Devices
from transfer.detection.tasks import config_file
from transfer.scaling import Schedule, comparison, for_devices

NETWORK = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS")  # of MODEL.RESNETS: what a backbone decides
# What figures do not depend on, or what a record says elsewhere.
ASIDE = (
    "DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "OUTPUT_DIR", "SEED", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.REFERENCE_WORLD_SIZE", "TASK.PROTOCOL", "TEST.EVAL_PERIOD", "VERSION",
)  # fmt: skip


def defaults() -> CfgNode:
    """detectron2's defaults and a node TASK of ours.

    TASK.DATA: layout of the data (transfer/layouts.py), or "fashion". TASK.PROTOCOL: its name in the record.
    TASK.SCENES: train scenes, val scenes, size and seed of Fashion Scenes. TASK.PRECISION: of training: fp32, bf16, or
    auto, which is bf16 where the device is fast at it; SOLVER.AMP.ENABLED is detectron2's own fp16.
    """
    cfg = get_cfg()
    cfg.TASK = CfgNode({"DATA": "", "PROTOCOL": "", "SCENES": [], "PRECISION": "fp32"})
    return cfg


def read_task(task: str) -> CfgNode:
    """A task as its YAML gives it.

    Raises:
        ValueError: no such task.
    """
    file = config_file(task)
    cfg = defaults()
    cfg.merge_from_file(str(file))
    return cfg


def resolve(
    task: str, backbone: Backbone, devices: Devices, seed: int, overrides: Sequence[str] = (), batch: int | None = None,
    scale: bool = True,
) -> tuple[CfgNode, str]:  # fmt: skip
    """Resolves the configuration of one run.

    Args:
        task: its name (transfer/detection/tasks.py).
        backbone: what is measured; its network takes the place of the task's.
        devices: what it runs on.
        seed: of everything random.
        overrides: KEY VALUE KEY VALUE …
        batch: images an iteration over all devices; None: as many a device as published.
        scale: whether the schedule follows the batch.

    Returns:
        The frozen configuration, and what was changed, for the screen.

    Raises:
        ValueError: names the setting that is wrong and the fix.
    """
    cfg = read_task(task)
    told = [*_take_network(cfg, backbone), *_schedule(cfg, devices, batch, scale)]
    if devices.kind == "cpu":
        cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.DEVICE = devices.kind
    _override(cfg, overrides, scale)
    cfg.SEED = seed
    cfg.MODEL.WEIGHTS = ""  # the backbone is loaded and compared by transfer/detection/weights.py
    if devices.world == 1 and (swapped := _without_sync(cfg)):
        told.append(f"one process: BN in place of SyncBN in {', '.join(swapped)}")
    _precision(cfg)
    _check(cfg, backbone, devices)
    cfg.freeze()
    return cfg, "\n".join(told)


def _take_network(cfg: CfgNode, backbone: Backbone) -> list[str]:
    """Sets MODEL.RESNETS to the backbone's network."""
    settings = expected_settings(backbone)
    changed = []
    for name in NETWORK:
        key, value = f"MODEL.RESNETS.{name}", settings[f"MODEL.RESNETS.{name}"]
        if cfg.MODEL.RESNETS[name] != value:
            changed.append(f"{key} {cfg.MODEL.RESNETS[name]} → {value}")
            cfg.MODEL.RESNETS[name] = value
    return [f"network of the checkpoint ({backbone.arch}): {', '.join(changed)}"] if changed else []


def expected_settings(backbone: Backbone) -> dict[str, Any]:
    """The settings of detectron2 that belong to a backbone, by dotted key, as converters writes them.

    Raises:
        ValueError: detectron2 has no such network.
    """
    target = TARGETS["detectron2"]
    target.check(backbone)
    assert target.settings is not None
    text = target.settings[1](backbone.arch, Path("backbone.pkl"), "")
    return {key: value for key, value in flat(yaml.safe_load(text)).items() if key != "VERSION"}


def _schedule(cfg: CfgNode, devices: Devices, batch: int | None, scale: bool) -> list[str]:
    solver = cfg.SOLVER
    before = Schedule(
        solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS, tuple(solver.STEPS), solver.MAX_ITER
    )  # fmt: skip
    published = solver.REFERENCE_WORLD_SIZE
    solver.REFERENCE_WORLD_SIZE = 0  # so that detectron2's trainer does not scale once more
    if not scale:
        if batch is not None:
            raise ValueError("--batch changes the schedule and --no-scale keeps it: leave one of them out")
        return [f"--no-scale: the schedule for {published} devices as it is"] if devices.world != published else []
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
            told = " ".join(str(error).split()).strip("'\"")
            raise ValueError(f"{key} {value}: not a setting of detectron2 ({told})") from error


def _without_sync(cfg: CfgNode) -> list[str]:
    """Puts BN in the place of synchronised BN, which wants several processes; returns the keys."""
    synced = sorted(k for k, v in flat(cfg).items() if k.endswith(".NORM") and v in ("SyncBN", "naiveSyncBN"))
    for key in synced:
        cfg.merge_from_list([key, "BN"])
    return synced


def _precision(cfg: CfgNode) -> None:
    if cfg.TASK.PRECISION not in ("fp32", "bf16", "auto"):
        raise ValueError(f"TASK.PRECISION {cfg.TASK.PRECISION}: use fp32, bf16 or auto")
    if cfg.TASK.PRECISION == "auto":
        fast = autocast_dtype("auto", torch.device(cfg.MODEL.DEVICE))
        cfg.TASK.PRECISION = "fp32" if fast is None else "bf16"
    if cfg.SOLVER.AMP.ENABLED and (cfg.MODEL.DEVICE != "cuda" or cfg.TASK.PRECISION != "fp32"):
        raise ValueError("SOLVER.AMP.ENABLED is fp16 on a GPU; elsewhere, or for bf16, use TASK.PRECISION bf16")


def _check(cfg: CfgNode, backbone: Backbone, devices: Devices) -> None:
    found = flat(cfg)
    for key, wanted in expected_settings(backbone).items():
        if found[key] != wanted:
            raise ValueError(
                f"{key} is {found[key]}, and {backbone.source.path} ({backbone.arch}) was trained for {wanted}: "
                f"leave {key} out"
            )
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH % devices.world:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not a multiple of {devices.world} processes")
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER {solver.MAX_ITER}: must be at least 1")
    if any(step >= solver.MAX_ITER for step in solver.STEPS):  # a shortened run keeps its first learning rate
        solver.STEPS = tuple(step for step in solver.STEPS if step < solver.MAX_ITER)


def for_record(cfg: CfgNode) -> dict[str, Any]:
    """What the figures depend on: each setting that is not detectron2's default, by dotted key."""
    before = flat(defaults())
    return {key: value for key, value in flat(cfg).items() if key not in ASIDE and value != before.get(key)}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys; tuples become lists, as YAML has them."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = _plain(value)
    return rows


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def with_output(cfg: CfgNode, folder: Path) -> CfgNode:
    """The configuration with its run folder."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    return cfg


def packages() -> tuple[str, ...]:
    """Distributions whose versions belong to a figure: detectron2 goes by several names."""
    installed = importlib.metadata.packages_distributions()["detectron2"]
    return (*dict.fromkeys(installed), "faster-coco-eval", "pycocotools")
