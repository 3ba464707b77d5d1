"""mmdet as an engine: what works of each task, how fast an iteration is, and how its settings differ from detectron2's.

    python tests/benchmarks/bench_mmdet.py tasks [TASK ...] --record results/benchmarks/mmdet_tasks.jsonl
    python tests/benchmarks/bench_mmdet.py time --record results/benchmarks/mmdet.jsonl
    python tests/benchmarks/bench_mmdet.py settings --record results/benchmarks/engines.json

`tasks` trains each task on tiny data in the real trees for two iterations, evaluates it, and resumes it from the first.

`time` measures processor time, in two processes that take turns, because the engines cannot share one. `engine` is a
training step of fashion-fpn in float32 on the same eight scenes in both: forward, backward, optimiser. `command` is an
iteration of transfer/detect.py with every hook, against mmdet's own runner with its stock hooks on the same config.

`settings` reads the resolved settings of fashion-fpn in both engines.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from common.run_folder import environment
from tests.benchmarks.runners import Iteration, started
from transfer.benchmark import Run, read_checkpoint
from transfer.changes import flat
from transfer.detect import parser

CPU, WARM_UP, SCENES = torch.device("cpu"), 3, 8
# What is compared -> keys of both resolved configs.
SETTINGS = {
    "anchors: sizes": ("MODEL.ANCHOR_GENERATOR.SIZES", "model.rpn_head.anchor_generator.scales"),
    "anchors: strides": ("MODEL.RPN.IN_FEATURES", "model.rpn_head.anchor_generator.strides"),
    "anchors: offset": ("MODEL.ANCHOR_GENERATOR.OFFSET", "model.rpn_head.anchor_generator.center_offset"),
    "RPN: anchors per image": ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "model.train_cfg.rpn.sampler.num"),
    "RPN: NMS, IoU": ("MODEL.RPN.NMS_THRESH", "model.train_cfg.rpn_proposal.nms.iou_threshold"),
    "RPN: before NMS, per level": ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "model.train_cfg.rpn_proposal.nms_pre"),
    "RPN: proposals, training": ("MODEL.RPN.POST_NMS_TOPK_TRAIN", "model.train_cfg.rpn_proposal.max_per_img"),
    "RPN: proposals, test": ("MODEL.RPN.POST_NMS_TOPK_TEST", "model.test_cfg.rpn.max_per_img"),
    "RPN: box loss": ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "model.rpn_head.loss_bbox.type"),
    "regions per image": ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "model.train_cfg.rcnn.sampler.num"),
    "regions: positive fraction": ("MODEL.ROI_HEADS.POSITIVE_FRACTION", "model.train_cfg.rcnn.sampler.pos_fraction"),
    "regions: low-quality matches": ("MODEL.ROI_HEADS.LOW_QUALITY", "model.train_cfg.rcnn.assigner.match_low_quality"),
    "box head: loss": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "model.roi_head.bbox_head.loss_bbox.type"),
    "box head: deltas": ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "model.roi_head.bbox_head.bbox_coder.target_stds"),
    "mask head: target, pixels": ("MODEL.ROI_MASK_HEAD.TARGET", "model.train_cfg.rcnn.mask_size"),
    "test: NMS, IoU": ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "model.test_cfg.rcnn.nms.iou_threshold"),
    "test: least score": ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "model.test_cfg.rcnn.score_thr"),
    "test: detections per image": ("TEST.DETECTIONS_PER_IMAGE", "model.test_cfg.rcnn.max_per_img"),
    "norm of the backbone": ("MODEL.RESNETS.NORM", "model.backbone.norm_cfg.type"),
    "norm of the FPN": ("MODEL.FPN.NORM", "model.neck.norm_cfg.type"),
    "norm: statistics estimated again": ("TEST.PRECISE_BN.ENABLED", "precise_bn"),
    "gradient clipping": ("SOLVER.CLIP_GRADIENTS.ENABLED", "optim_wrapper.clip_grad"),
    "weight decay of norms": ("SOLVER.WEIGHT_DECAY_NORM", "optim_wrapper.paramwise_cfg.norm_decay_mult"),
    "precision of the study": ("TASK.PRECISION", "precision"),
    "images in a batch of one shape": ("DATALOADER.ASPECT_RATIO_GROUPING", "train_dataloader.batch_sampler.type"),
}  # fmt: skip
NOTES = {
    "anchors: sizes": "pixels on each level; mmdet: times the stride, so 12, 24, 48, 96",
    "anchors: strides": "levels that the RPN sees: detectron2's have the strides 8, 16, 32",
    "RPN: box loss": "equal: smooth L1 with β = 0",
    "box head: loss": "equal: smooth L1 with β = 0",
    "box head: deltas": "equal: detectron2 multiplies and mmdet divides",
    "gradient clipping": "equal",
    "regions: low-quality matches": "in mmdet, of the regions above IoU 0.5 an object keeps its best one",
    "norm: statistics estimated again": "over 25 batches before the evaluation",
    "images in a batch of one shape": "the scenes have one shape",
    "precision of the study": "forward pass in training",
}  # fmt: skip
# What is no setting of an engine, from its source: detectron2 0.6 and mmdet 3.3.0.
FIXED = {
    "MODEL.ROI_HEADS.LOW_QUALITY": False, "MODEL.ROI_MASK_HEAD.TARGET": 28, "precise_bn": False, "precision": "fp32",
    "model.rpn_head.anchor_generator.center_offset": 0.0,
}  # fmt: skip


def try_tasks(names: list[str], record: Path | None) -> None:
    """Try the tasks one after the other; print and append a line for each."""
    importlib.import_module("transfer.detection.mmdet_engine.run")
    from tests.transfer.small_mmdet import make_data, try_task
    from transfer.tasks import MMDET

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = make_data(Path(name, "data"))
        for task in names or MMDET.names():
            ckpt = "random:resnet18" if task.startswith("fashion") else "random:resnet50"
            row, made = try_task(task, root, Path(name, task), ckpt)
            line = {"task": task, **row, "versions": made.environment["versions"]}
            print(json.dumps(row | {"task": task}), flush=True)
            if record:
                with open(record, "a") as file:
                    file.write(json.dumps(line) + "\n")


def scenes() -> tuple[Path, list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Return the folder of Fashion Scenes, the first eight training images and their annotations."""
    from transfer.scenes import ensure_scenes

    folder = ensure_scenes(Path("data"))
    content = json.loads((folder / "annotations" / "instances_train.json").read_bytes())
    images = content["images"][:SCENES]
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for row in content["annotations"]:
        if row["image_id"] in rows:
            rows[row["image_id"]].append(row)
    return folder, images, rows


def detectron2_step(_: Path) -> dict[str, Iteration]:
    """Return a training step of detectron2's fashion-fpn on the eight scenes."""
    from detectron2.data import DatasetMapper
    from detectron2.engine import DefaultTrainer
    from detectron2.structures import BoxMode
    from detectron2.utils.events import EventStorage

    from transfer.detection.detectron2_engine import config
    from transfer.detection.devices import Devices

    folder, images, rows = scenes()
    backbone = read_checkpoint("random:resnet18", 0)
    cfg, _ = config.resolve("fashion-fpn", backbone, Devices("cpu", 0), 0, ["TASK.PRECISION", "fp32"])
    model, mapper = DefaultTrainer.build_model(cfg).train(), DatasetMapper(cfg, is_train=True)
    optimizer = DefaultTrainer.build_optimizer(cfg, model)
    batch = [
        mapper({
            "file_name": str(folder / "images" / "train" / image["file_name"]), "image_id": image["id"],
            "height": image["height"], "width": image["width"],
            "annotations": [
                {**row, "bbox_mode": BoxMode.XYWH_ABS, "category_id": row["category_id"] - 1}
                for row in rows[image["id"]]
            ],
        })
        for image in images
    ]  # fmt: skip

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage(0):
            sum(model(batch).values()).backward()
        optimizer.step()

    return {"engine": step}


def mmdet_steps(folder: Path) -> dict[str, Iteration]:
    """Return mmdet's step on the eight scenes, and iterations of the command's runner and of mmdet's own."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    from transfer.detection.mmdet_engine import run as engine
    from transfer.detection.mmdet_engine.data import find_data
    from transfer.openmmlab.devices import join
    from transfer.openmmlab.hooks import BackboneHook, MetricsHook, ResumeHook, SampleHook
    from transfer.openmmlab.trainer import build_runner

    join("none", "cpu")
    engine.register()
    given = ["default_hooks.checkpoint.interval=100000", "train_cfg.max_iters=100000", "train_cfg.val_interval=100000"]
    options = parser().parse(["--engine", "mmdet", "--task", "fashion-fpn", "--device", "cpu", "--cfg-options", *given])
    backbone = read_checkpoint("random:resnet18", 0)
    resolved = engine.resolve(options, backbone, "cpu", 1)
    cfg = resolved.cfg
    find_data(cfg, Path("data"))
    ours = build_runner(cfg, Run(backbone, "fashion-fpn", "", 0, {}, "bbox/AP", folder / "ours"), None)
    writes = importlib.import_module("common.run_folder").RunFolder(folder / "writes")
    writes.start({}, CPU, 0)
    metrics = MetricsHook(writes, cfg.default_hooks.logger.interval, 0, 0.004, "bbox/AP")
    for hook in (BackboneHook(resolved.weights), ResumeHook(0.0), metrics, SampleHook(engine.take_sample)):
        ours.register_hook(hook)
    settings = {
        **cfg.to_dict(), "work_dir": str(folder / "stock"), "experiment_name": "stock", "randomness": {"seed": 0},
        "log_level": "WARNING",
        "visualizer": {
            "type": "DetLocalVisualizer", "name": "visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
    }  # fmt: skip
    stock = Runner.from_cfg(Config(settings))
    dataset, numbers = ours.train_dataloader.dataset, {image["id"]: None for image in scenes()[1]}
    chosen = [i for i in range(len(dataset)) if dataset.get_data_info(i)["img_id"] in numbers]
    batch = importlib.import_module("mmengine.dataset").pseudo_collate([dataset[i] for i in chosen])
    iterations = {"command": started(ours), "stock": started(stock)}
    return {**iterations, "engine": lambda: ours.model.train_step(batch, ours.optim_wrapper)}


def serve(name: str) -> None:
    """Do an iteration for each line on stdin; answer with the processor time in seconds."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        work = {"detectron2": detectron2_step, "mmdet": mmdet_steps}[name](Path(folder))
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            began = time.process_time()
            work[line.strip()]()
            print(time.process_time() - began, file=answers, flush=True)


class Worker:
    """A process with one engine."""

    def __init__(self, name: str) -> None:
        given = [sys.executable, __file__, "serve", name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(given, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdin
        assert self.process.stdout
        self.asks, self.answers = self.process.stdin, self.process.stdout
        assert self.answers.readline().strip() == "ready", f"{name} does not start"

    def seconds(self, what: str) -> float:
        """Return the processor time of one iteration."""
        print(what, file=self.asks, flush=True)
        return float(self.answers.readline())


def measure_time(rounds: int, record: Path | None) -> None:
    """Measure, print, and append a record if asked to."""
    workers = {name: Worker(name) for name in ("detectron2", "mmdet")}
    calls = [("detectron2", "engine"), ("mmdet", "engine"), ("mmdet", "command"), ("mmdet", "stock")]
    seconds: dict[str, list[float]] = {f"{name} {what}": [] for name, what in calls}
    for i in range(rounds + WARM_UP):
        for name, what in calls[:: 1 if i % 2 else -1]:  # neither profits from what the other leaves in the caches
            taken = workers[name].seconds(what)
            if i >= WARM_UP:
                seconds[f"{name} {what}"].append(taken)
    for worker in workers.values():
        worker.asks.close()
    pairs = {
        "mmdet's training step / detectron2's: time": ("mmdet engine", "detectron2 engine"),
        "detect.py --engine mmdet, iteration / mmdet's own: time": ("mmdet command", "mmdet stock"),
    }
    ratios = {
        title: statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        for title, (one, other) in pairs.items()
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({"ratios": ratios, "seconds": medians}, indent=1))
    if record:
        where = environment(CPU, ("mmdet", "onedl-mmcv", "onedl-mmengine"))
        with open(record, "a") as file:
            file.write(json.dumps({"ratios": ratios, "rounds": rounds, "seconds": medians, **where}) + "\n")


def resolved_settings(name: str) -> dict[str, Any]:
    """Return the resolved settings of fashion-fpn in an engine, by dotted key."""
    backbone = read_checkpoint("random:resnet18", 0)
    if name == "detectron2":
        from transfer.detection.detectron2_engine import config
        from transfer.detection.devices import Devices

        return flat(config.resolve("fashion-fpn", backbone, Devices("cpu", 0), 0)[0])
    from transfer.detection.mmdet_engine.config import resolve

    options = parser().parse(["--engine", "mmdet", "--task", "fashion-fpn", "--device", "cpu"])
    return flat(resolve(options, backbone, "cpu", 1).config)


def compare_settings(record: Path | None) -> None:
    """Print the settings of both engines, one line each, and write them if asked to."""
    found = {}
    for name in ("detectron2", "mmdet"):
        given = [sys.executable, __file__, "show", name]
        answer = subprocess.run(given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
        found[name] = json.loads(answer.splitlines()[-1]) | FIXED
    rows = [
        {
            "setting": title,
            "detectron2": found["detectron2"].get(ours),
            "mmdet": found["mmdet"].get(theirs),
            "note": NOTES.get(title, ""),
        }
        for title, (ours, theirs) in SETTINGS.items()
    ]
    print("\n".join(map(json.dumps, rows)))
    if record:
        record.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main() -> None:
    """Run what the first word names."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("tasks", "time", "settings", "serve", "show"))
    options.add_argument("names", nargs="*", help="of tasks, or for serve and show an engine")
    options.add_argument("--rounds", type=int, default=20, help="measured iterations of each (default: 20)")
    options.add_argument("--record", type=Path, help="file to write to")
    chosen = options.parse_args()
    if chosen.what == "serve":
        serve(chosen.names[0])
    elif chosen.what == "show":
        print(json.dumps(resolved_settings(chosen.names[0])))
    elif chosen.what == "tasks":
        try_tasks(chosen.names, chosen.record)
    elif chosen.what == "time":
        measure_time(chosen.rounds, chosen.record)
    else:
        compare_settings(chosen.record)


if __name__ == "__main__":
    main()
