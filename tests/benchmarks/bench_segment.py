"""An iteration of transfer/segment.py against one of mmseg's own train loop with the same config.

    python tests/benchmarks/bench_segment.py [--rounds 40] [--crop 96] [--record results/benchmarks/segment.jsonl]

Both runners are in one process and take turns, iteration by iteration: images, forward, backward, step and every hook.
mmseg's has its stock hooks and writes its scalars as its tools do, to JSON and TensorBoard; ours has instead metrics,
progress bar, the check of the loss and the states of the generators. Neither saves a checkpoint or evaluates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mmengine.config import Config
from mmengine.runner import Runner

from common.run_folder import RunFolder, environment
from converters import Backbone, read_backbone
from tests.benchmarks.runners import Iteration, started
from transfer.benchmark import Run
from transfer.openmmlab.devices import join
from transfer.openmmlab.hooks import BackboneHook, MetricsHook, ResumeHook, SampleHook
from transfer.openmmlab.quiet import quiet
from transfer.openmmlab.trainer import build_runner
from transfer.openmmlab.weights import ModelBackbone
from transfer.segment import parser
from transfer.segmentation.config import resolve
from transfer.segmentation.data import find_data
from transfer.segmentation.run import PACKAGES, register, take_sample

CPU = join("none")
BOUND = 1.02  # of the ratio of times; the exit status is 1 above it


def resolved(crop: int, backbone: Backbone) -> Config:
    """Return fashion-fcn as the command resolves it, with another crop and without checkpoints."""
    sizes = {"model.data_preprocessor.size": crop, "train_dataloader.dataset.pipeline.3.crop_size": crop}
    values = [*(f"{key}=({side},{side})" for key, side in sizes.items()), "default_hooks.checkpoint.interval=100000"]
    options = parser().parse(["--task", "fashion-fcn", "--cfg-options", *values])
    cfg = resolve(options, backbone, "cpu", 1).cfg
    find_data(cfg, Path("data"))
    return cfg


def ours(cfg: Config, backbone: Backbone, folder: Path) -> Iteration:
    """Return an iteration of the command's runner with its hooks."""
    runner = build_runner(cfg, Run(backbone, "fashion-fcn", "benchmark", 0, {}, "mIoU", folder), None)
    writes = RunFolder(folder / "ours")
    writes.start({}, CPU, 0)
    every = cfg.default_hooks.logger.interval
    for hook in (
        BackboneHook(ModelBackbone.of(backbone)),
        ResumeHook(0.0),
        MetricsHook(writes, every, 0, 0.004, "mIoU"),
        SampleHook(take_sample),
    ):
        runner.register_hook(hook)
    return started(runner)


def stock(cfg: Config, folder: Path) -> Iteration:
    """Return an iteration of mmseg's runner, as its tools/train.py builds it."""
    settings: dict[str, Any] = {
        **cfg.to_dict(), "work_dir": str(folder / "stock"), "experiment_name": "stock", "randomness": {"seed": 0},
        "visualizer": {
            "type": "SegLocalVisualizer", "name": "visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        "log_level": "WARNING",
    }  # fmt: skip
    return started(Runner.from_cfg(Config(settings)))


def main() -> int:
    """Measure, print, and append a record if asked to; return 1 where the bound is missed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40, help="measured iterations of each (default: 40)")
    options.add_argument("--crop", type=int, default=96, help="pixels a side; small ones show hooks (default: 96)")
    options.add_argument("--record", type=Path, help="file to append one JSON line to")
    chosen = options.parse_args()
    where = environment(CPU, PACKAGES)
    backbone = read_backbone("random:resnet18")
    with tempfile.TemporaryDirectory() as folder, quiet():
        register()
        cfg = resolved(chosen.crop, backbone)
        variants = {"ours": ours(cfg, backbone, Path(folder)), "stock": stock(cfg, Path(folder))}
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for i in range(chosen.rounds + 5):
            # The order alternates, so that neither profits from what the other leaves in the caches.
            for name in list(variants)[:: 1 if i % 2 else -1]:
                began = time.perf_counter()
                variants[name]()
                if i >= 5:
                    seconds[name].append(time.perf_counter() - began)
    pairs = [mine / theirs for mine, theirs in zip(seconds["ours"], seconds["stock"], strict=True)]
    ratio = statistics.median(pairs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"iteration / mmseg's own: time {ratio:.3f}   (wanted: at most {BOUND}), crop {chosen.crop}")
    print({name: f"{1e3 * value:.1f} ms" for name, value in medians.items()})
    if chosen.record:
        details = {"rounds": chosen.rounds, "crop": chosen.crop, "seconds": medians, **where}
        chosen.record.parent.mkdir(parents=True, exist_ok=True)
        with open(chosen.record, "a") as file:
            file.write(json.dumps({"ratios": {"segmentation iteration / mmseg's own: time": ratio}, **details}) + "\n")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
