"""An iteration of transfer/detect.py against one of detectron2's own DefaultTrainer with the same config.

    python tests/benchmarks/bench_detect.py [--rounds 40] [--record results/benchmarks/detect.jsonl]

Both trainers run in one process and take turns, iteration by iteration: images, forward, backward, step and every hook.
detectron2's has its own loader, writers and hooks. Neither saves a checkpoint or evaluates. A third trainer is ours in
the task's own precision on this machine, which is bf16 where that is fast. Processor time is measured: all work is done
in this process, so other load on the machine does not distort it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from common.run_folder import environment
from transfer.benchmark import read_checkpoint
from transfer.detection.detectron2_engine import config, data, run
from transfer.detection.detectron2_engine.trainer import Trainer
from transfer.detection.devices import Devices

WARM_UP, ENDLESS = 5, 1_000_000
Iteration = Callable[[], None]


def resolved(folder: Path, precision: str) -> CfgNode:
    """Return fashion-fpn as the command resolves it, without checkpoints and evaluations."""
    values = {
        "SOLVER.MAX_ITER": ENDLESS, "SOLVER.CHECKPOINT_PERIOD": ENDLESS, "TEST.PRECISE_BN.ENABLED": False,
        "TASK.PRECISION": precision,
    }  # fmt: skip
    overrides = [str(word) for pair in values.items() for word in pair]
    backbone = read_checkpoint("random:resnet18", 0)
    cfg, _ = config.resolve("fashion-fpn", backbone, Devices("cpu", 0), 0, overrides)
    folder.mkdir(exist_ok=True)
    return config.with_output(cfg, folder)


def start(trainer: DefaultTrainer) -> Iteration:
    """Bring a trainer to its first iteration; return what its loop does for each."""
    trainer.storage = EventStorage(0)
    with trainer.storage:
        trainer.before_train()
    indices = iter(range(ENDLESS))

    def iteration() -> None:
        with trainer.storage:
            trainer.iter = next(indices)
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()

    return iteration


def ours(folder: Path, precision: str) -> Iteration:
    """Return an iteration of the command's trainer."""
    cfg = resolved(folder, precision)
    trainer = Trainer(cfg, read_checkpoint("random:resnet18", 0), folder)
    trainer.folder.start({}, torch.device("cpu"), 0)
    return start(trainer)


class Stock(DefaultTrainer):
    """detectron2's trainer with an evaluator, which its users have to choose, and without printing the model."""

    build_model, build_evaluator = Trainer.build_model, Trainer.build_evaluator


def stock(folder: Path) -> Iteration:
    """Return an iteration of detectron2's trainer on the same config."""
    setup_logger(str(folder))  # as its tools do: to the screen and to a file
    return start(Stock(resolved(folder, "fp32")))


def main() -> None:
    """Measure, print, and append a record if asked to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40, help="measured iterations of each (default: 40)")
    options.add_argument("--record", type=Path, help="file to append one JSON line to")
    chosen = options.parse_args()
    where = environment(torch.device("cpu"), config.packages())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data.register(resolved(folder / "data", "fp32"), Path("data"))
        run.log_to_file(folder)
        variants = {"ours": ours(folder / "ours", "fp32"), "as it comes": ours(folder / "auto", "auto")}
        variants["stock"] = stock(folder / "stock")
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for i in range(chosen.rounds + WARM_UP):
            # The order alternates, so that neither profits from what the other leaves in the caches.
            for name in list(variants)[:: 1 if i % 2 else -1]:
                began = time.process_time()
                variants[name]()
                if i >= WARM_UP:
                    seconds[name].append(time.process_time() - began)
    ratios = {
        f"detection iteration{words} / detectron2's own: time": statistics.median(
            mine / theirs for mine, theirs in zip(seconds[name], seconds["stock"], strict=True)
        )
        for name, words in (("ours", ""), ("as it comes", " as it comes"))
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for title, ratio in ratios.items():
        print(f"{title:64} {ratio:.3f}" + "   (wanted: at most 1.02)" * ("as it comes" not in title))
    print({name: f"{1e3 * value:.0f} ms" for name, value in medians.items()})
    if chosen.record:
        chosen.record.parent.mkdir(parents=True, exist_ok=True)
        with open(chosen.record, "a") as file:
            file.write(json.dumps({"ratios": ratios, "rounds": chosen.rounds, "seconds": medians, **where}) + "\n")


if __name__ == "__main__":
    main()
