"""Resolved configurations against the protocols, options and titles. Run by test_detect.py in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.modeling import build_model

from converters.backbone import Backbone
from tests.transfer.two_sets import KIND, TRIED, assert_refuses_another, write_two_sets
from transfer.benchmark import read_checkpoint
from transfer.changes import flat
from transfer.detect import main
from transfer.detection.detectron2_engine import config
from transfer.detection.detectron2_engine.config import for_record, resolve
from transfer.detection.detectron2_engine.title import compose_title
from transfer.detection.devices import Devices
from transfer.tasks import DETECTION

ROOT = Path(__file__).parents[2]
R18, R50 = (read_checkpoint(f"random:{arch}", 0) for arch in ("resnet18", "resnet50"))
EIGHT = Devices("cuda", 8)
ONE, CPU = Devices("cuda", 1), Devices("cpu", 0)

# Copied from the sources that the tasks name (MoCo's detection code and paper, PyContrast, mmselfsup, SoCo), not from
# our YAML files. The values are compared key by key with what a task resolves to on eight GPUs.
COMMON: dict[str, Any] = {
    "INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53], "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN", "TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 200,
    "SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "SOLVER.MOMENTUM": 0.9, "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 1e-4, "SOLVER.WEIGHT_DECAY_NORM": 0.0, "SOLVER.GAMMA": 0.1,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER.WARMUP_METHOD": "linear", "SOLVER.WARMUP_FACTOR": 1e-3,
    "SOLVER.WARMUP_ITERS": 1000, "SOLVER.CLIP_GRADIENTS.ENABLED": False, "SOLVER.AMP.ENABLED": False,
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800], "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333, "INPUT.MIN_SIZE_TEST": 800, "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal", "INPUT.CROP.ENABLED": False, "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"], "TEST.DETECTIONS_PER_IMAGE": 100, "TEST.AUG.ENABLED": False,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler", "TASK.PRECISION": "fp32",
}  # fmt: skip
C4 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"], "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"], "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000, "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000, "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
}  # fmt: skip
FPN = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"], "MODEL.FPN.NORM": "SyncBN",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"], "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000, "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000, "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512, "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7, "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}  # fmt: skip
A = FPN | {
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2, "MODEL.ROI_BOX_HEAD.NUM_CONV": 0, "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NORM": "",
}  # fmt: skip
B = FPN | {
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1, "MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}  # fmt: skip
MASKS = {"MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": False, "MODEL.ROI_HEADS.NUM_CLASSES": 80}
ONE_X = {"SOLVER.STEPS": [60_000, 80_000], "SOLVER.MAX_ITER": 90_000}
TWO_X = {"SOLVER.STEPS": [120_000, 160_000], "SOLVER.MAX_ITER": 180_000}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco-c4-1x": C4 | MASKS | ONE_X,
    "coco-c4-2x": C4 | MASKS | TWO_X,
    "coco-fpn-1x": A | MASKS | ONE_X,
    "coco-fpn-2x": A | MASKS | TWO_X,
    "coco-fpn-b-1x": B | MASKS | ONE_X,
    "coco-fpn-b-2x": B | MASKS | TWO_X,
    "voc-c4-24k": C4 | {
        "MODEL.MASK_ON": False, "MODEL.ROI_HEADS.NUM_CLASSES": 20, "SOLVER.STEPS": [18_000, 22_000],
        "SOLVER.MAX_ITER": 24_000, "SOLVER.WARMUP_ITERS": 100,
        "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        "DATASETS.TRAIN": ["voc_2007_trainval", "voc_2012_trainval"], "DATASETS.TEST": ["voc_2007_test"],
    },
    "coco-retinanet-1x": ONE_X | {
        "MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.NORM": "SyncBN", "MODEL.RETINANET.NORM": "", "MODEL.RETINANET.NUM_CLASSES": 80,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5], "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0, "SOLVER.BASE_LR": 0.01,
    },
    "coco-keypoint-2x": A | TWO_X | {
        "MODEL.MASK_ON": False, "MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
        "DATASETS.TRAIN": ["keypoints_coco_2017_train"], "DATASETS.TEST": ["keypoints_coco_2017_val"],
    },
    "cityscapes-instance": A | {
        "MODEL.MASK_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 8, "SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01,
        "SOLVER.STEPS": [18_000], "SOLVER.MAX_ITER": 24_000, "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MIN_SIZE_TRAIN": [800, 832, 864, 896, 928, 960, 992, 1024], "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MAX_SIZE_TEST": 2048, "DATASETS.TRAIN": ["cityscapes_fine_instance_seg_train"],
        "DATASETS.TEST": ["cityscapes_fine_instance_seg_val"],
    },
    "lvis-v1-fpn": B | TWO_X | {
        "MODEL.MASK_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 1203, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1e-4,
        "TEST.DETECTIONS_PER_IMAGE": 300, "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.001, "DATASETS.TRAIN": ["lvis_v1_train"], "DATASETS.TEST": ["lvis_v1_val"],
    },
}  # fmt: skip


def resolved(task: str, backbone: Backbone = R50, devices: Devices = EIGHT, **options: Any) -> dict[str, Any]:
    return flat(resolve(task, backbone, devices, 0, **options)[0])


def test_every_paper_scale_task_is_compared_with_its_protocol() -> None:
    assert {task for task in DETECTION.names() if not task.startswith("fashion")} == PROTOCOLS.keys()


@pytest.mark.parametrize("task", PROTOCOLS)
def test_a_resolved_task_equals_its_protocol(task: str) -> None:
    found = resolved(task)
    wanted = COMMON | PROTOCOLS[task]
    differ = {key: (found.get(key, "absent"), value) for key, value in wanted.items() if found.get(key) != value}
    assert not differ
    # and every setting that differs from detectron2's default is listed above: nothing else was changed
    before = flat(config.defaults())
    changed = {key for key, value in found.items() if value != before[key]}
    aside = {"SEED", "TASK.DATA", "TASK.HEADLINE", "SOLVER.REFERENCE_WORLD_SIZE", "VERSION", "OUTPUT_DIR"}
    assert changed - wanted.keys() - aside == set()


@pytest.mark.parametrize("task", DETECTION.names())
def test_a_config_opens_with_command_cost_and_published_scores(task: str) -> None:
    head = [line for line in DETECTION.find(task).read_text().splitlines() if line.startswith("# ")]
    assert head[0].startswith("# python transfer/detect.py --ckpt CHECKPOINT --task " + task)
    assert any(line.startswith("# Cost: about ") for line in head)
    assert any(line.startswith("# Published") for line in head)
    assert DETECTION.describe(task) in head[1]
    found = config.read_task(task).TASK.HEADLINE
    assert found == {"coco-keypoint-2x": "keypoints/AP", "cityscapes-instance": "segm/AP"}.get(task, "bbox/AP")


def test_one_process_gets_plain_batch_norm_and_a_scaled_schedule() -> None:
    cfg, changes = resolve("coco-fpn-b-1x", R50, ONE, 0)
    norms = {key: value for key, value in flat(cfg).items() if key.endswith(".NORM") and value}
    assert set(norms.values()) - {"GN"} == {"BN"}  # GN: a head that is not built
    assert "one process: BN replaces SyncBN in MODEL.FPN.NORM, MODEL.RESNETS.NORM, MODEL.ROI_BOX_HEAD.NORM" in changes
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS) == (2, 0.0025, 8000)
    assert (solver.STEPS, solver.MAX_ITER, solver.REFERENCE_WORLD_SIZE) == ((480_000, 640_000), 720_000, 0)
    assert "90000" in changes
    assert "720000" in changes
    assert resolved("coco-fpn-b-1x", devices=CPU)["MODEL.DEVICE"] == "cpu"


def test_no_scale_keeps_the_schedule_and_batch_scales_it() -> None:
    kept, changes = resolve("coco-c4-1x", R50, ONE, 0, scale=False)
    assert (kept.SOLVER.IMS_PER_BATCH, kept.SOLVER.MAX_ITER, kept.SOLVER.BASE_LR) == (16, 90_000, 0.02)
    assert "--no-scale: the schedule for 8 devices is kept" in changes
    batched = resolved("coco-c4-1x", devices=Devices("cuda", 8, 2), batch=64)
    assert (batched["SOLVER.IMS_PER_BATCH"], batched["SOLVER.BASE_LR"]) == (64, 0.08)
    assert batched["MODEL.RESNETS.NORM"] == "SyncBN"


def test_the_network_comes_from_the_checkpoint() -> None:
    cfg, changes = resolve("coco-c4-1x", R18, EIGHT, 0)
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (18, 64)
    assert "MODEL.RESNETS.DEPTH 50 → 18" in changes
    wide = resolved("coco-fpn-1x", read_checkpoint("random:resnext50_32x4d", 0))
    assert (wide["MODEL.RESNETS.NUM_GROUPS"], wide["MODEL.RESNETS.WIDTH_PER_GROUP"]) == (32, 4)


def test_settings_of_the_command_line_are_not_scaled() -> None:
    found = resolved("coco-c4-1x", devices=ONE, overrides=["SOLVER.MAX_ITER", "70", "INPUT.MIN_SIZE_TRAIN", "(64,)"])
    assert (found["SOLVER.MAX_ITER"], found["SOLVER.STEPS"], found["INPUT.MIN_SIZE_TRAIN"]) == (70, [], [64])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["INPUT.FORMAT", "BGR"]}, "INPUT.FORMAT is BGR, and random.* was trained for RGB"),
        ({"overrides": ["MODEL.PIXEL_STD", "[1.0,1.0,1.0]"]}, "MODEL.PIXEL_STD is"),
        ({"overrides": ["MODEL.PIXEL_MEAN", "[0.0,1.0,1.0]"]}, "MODEL.PIXEL_MEAN is"),
        ({"overrides": ["MODEL.RESNETS.STRIDE_IN_1X1", "True"]}, "STRIDE_IN_1X1 is True"),
        ({"overrides": ["MODEL.BACKBONE.FREEZE_AT", "2"]}, "FREEZE_AT is 2"),
        ({"overrides": ["MODEL.RESNETS.DEPTH", "101"]}, "DEPTH is 101"),
        ({"overrides": ["SOLVER.BASE_LRR", "1"]}, "SOLVER.BASE_LRR 1: not a setting of detectron2"),
        ({"overrides": ["SOLVER.BASE_LR", "fast"]}, "SOLVER.BASE_LR fast: not a setting of detectron2"),
        ({"overrides": ["SOLVER.BASE_LR"]}, "settings come in pairs"),
        ({"overrides": ["SOLVER.IMS_PER_BATCH", "4"]}, "use --batch 4"),
        ({"overrides": ["SEED", "4"]}, "use --seeds"),
        ({"overrides": ["SOLVER.MAX_ITER", "0"]}, "must be at least 1"),
        ({"overrides": ["TASK.PRECISION", "fp8"]}, "TASK.PRECISION fp8: use fp32"),
        ({"overrides": ["TASK.PRECISION", "bf16", "SOLVER.AMP.ENABLED", "True"]}, "use TASK.PRECISION bf16"),
        ({"batch": 12}, "--batch 12: must be a multiple of the 8 devices"),
        ({"batch": 16, "scale": False}, "leave one of them out"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("coco-c4-1x", R50, EIGHT, 0, **options)


def test_what_detectron2_cannot_build_is_refused() -> None:
    with pytest.raises(ValueError, match="detectron2 builds no resnet18_cifar"):
        resolve("fashion-fpn", read_checkpoint("random:resnet18_cifar", 0), CPU, 0)


def test_a_record_holds_what_the_metrics_depend_on() -> None:
    cfg = resolve("fashion-fpn", R18, CPU, 0)[0]
    recorded = for_record(cfg)
    assert recorded["SOLVER.MAX_ITER"] == cfg.SOLVER.MAX_ITER
    assert recorded["TASK.SCENES"] == [2000, 500, 128, 0]
    assert recorded["MODEL.RESNETS.NORM"] == "BN"
    assert not {"OUTPUT_DIR", "SEED", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"} & recorded.keys()
    assert yaml.safe_load(yaml.safe_dump(recorded)) == recorded
    other = for_record(resolve("fashion-fpn", R18, CPU, 0, ["DATALOADER.NUM_WORKERS", "1"])[0])
    assert other == recorded


def title(task: str, arch: str, devices: Devices, *overrides: str) -> str:
    return compose_title(task, resolve(task, read_checkpoint(f"random:{arch}", 0), devices, 0, overrides)[0])


def test_a_task_as_published_has_a_title_without_changes() -> None:
    assert title("coco-c4-1x", "resnet50", EIGHT) == (
        "Mask R-CNN R50-C4 with extra norm, SyncBN in backbone, coco_2017_train to coco_2017_val, "
        "90000 iterations of 16, lr 0.02, fp32"
    )
    for task in DETECTION.names():
        arch, devices = ("resnet18", CPU) if task.startswith("fashion") else ("resnet50", EIGHT)
        assert "changed" not in title(task, arch, devices), task
    assert len({title(task, "resnet50", EIGHT) for task in PROTOCOLS}) == len(PROTOCOLS)


@pytest.mark.parametrize(("arch", "network"), [("resnet18", "R18"), ("resnet50", "R50"), ("resnet101", "R101")])
def test_coco_c4_1x_on_one_process_does_not_carry_the_published_title(arch: str, network: str) -> None:
    line, _, changes = title("coco-c4-1x", arch, ONE).partition("; changed: ")
    assert line.startswith(f"Mask R-CNN {network}-C4 with extra norm, BN in backbone, ")
    assert "SyncBN" not in line
    assert "720000 iterations of 2, lr 0.0025" in line
    assert {"MODEL.RESNETS.NORM=BN", "SOLVER.IMS_PER_BATCH=2"} <= set(changes.split())
    assert ("MODEL.RESNETS.DEPTH=" in changes) == (arch != "resnet50")


def test_a_network_or_an_option_alone_changes_the_title() -> None:
    assert title("coco-c4-1x", "resnet101", EIGHT).endswith("; changed: MODEL.RESNETS.DEPTH=101")
    assert title("coco-fpn-1x", "resnext50_32x4d", EIGHT).startswith("Mask R-CNN X50-32x4d-FPN")
    changed = title("coco-fpn-b-1x", "resnet50", EIGHT, "MODEL.ROI_BOX_HEAD.NORM", "GN")
    assert "SyncBN in backbone, FPN, mask head, GN in box head" in changed
    assert changed.endswith("; changed: MODEL.ROI_BOX_HEAD.NORM=GN")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [", "mine.yaml: not a config of detectron2"),
        ("TASK:\n  PROTOKOL: x", "mine.yaml: not a config of detectron2: .*TASK.PROTOKOL"),
        ("_BASE_: no_such.yaml", "mine.yaml: not a config of detectron2|no_such.yaml"),
        ("VERSION: 2", "mine.yaml: set SOLVER.REFERENCE_WORLD_SIZE"),
    ],
)
def test_a_mistake_in_a_user_s_config_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        config.read_task(str(tmp_path / "mine.yaml"))


Plan = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    """The command with --dry-run; returns what it prints."""

    def run(*options: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main([*options, "--dry-run"]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_dry_run_keeps_the_hash_of_the_records_of_fashion_fpn(plan: Plan, tmp_path: Path) -> None:
    (planned,) = plan(
        "--ckpt", "random:resnet18?seed=0", "--task", "fashion-fpn", "--device", "cpu", "--data-root", str(tmp_path),
        "--out", str(tmp_path / "out"), "TASK.PRECISION", "bf16",
    )  # fmt: skip
    assert planned["config_hash"] == "e59598c2a319"
    stored = ROOT / "results" / "records" / planned["path"]
    assert planned["config"] == json.loads(stored.read_text())["config"]
    assert "changed" not in planned["title"]
    real = build_model(config.resolve("fashion-fpn", read_checkpoint("random", 0), Devices("cpu", 0), 0)[0])
    assert planned["takes"]["parameters"] == sum(p.numel() for p in real.parameters())
    assert not list(tmp_path.iterdir()), "no data set, no run folder"


def test_a_dry_run_plans_for_gpus_that_are_elsewhere(plan: Plan) -> None:
    options = ("--ckpt", "random:resnet50", "--task", "coco-c4-1x", "--data-root", "/no/data", "--seeds", "0", "1")
    planned = plan(*options, "--device", "cuda", "--num-gpus", "8")
    assert [row["seed"] for row in planned] == [0, 1]
    assert len({row["config_hash"] for row in planned}) == 1
    assert planned[0]["config"]["MODEL.RESNETS.NORM"] == "SyncBN"
    assert "90000 iterations of 16" in planned[0]["title"]
    takes = planned[0]["takes"]
    assert (takes["iterations"], takes["batch"], takes["image"]) == (90000, 16, [800, 1088])
    assert takes["data"][0] == "coco/{train2017,val2017}/*.jpg"
    # The last stage is in the head: of ResNet-50's 4.09 G multiply-adds at 224 px, 3.28 G are left.
    assert takes["backbone_flops"] == pytest.approx(2 * 3.28e9 * 800 * 1088 / 224**2, rel=0.01)


def test_a_user_s_config_gives_its_name_to_the_task(plan: Plan, tmp_path: Path) -> None:
    mine = tmp_path / "my_task.yaml"
    mine.write_text(f"_BASE_: {DETECTION.folder / 'fashion-fpn.yaml'}\nSOLVER:\n  BASE_LR: 0.01\n")
    (planned,) = plan("--ckpt", "random:resnet18", "--task", str(mine), "--device", "cpu")
    assert planned["task"] == "my_task"
    assert planned["path"].startswith("my_task/")
    assert "lr 0.01" in planned["title"]


@pytest.mark.fault(KIND, "detect", TRIED)
def test_the_chosen_weights_are_planned(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = str(write_two_sets(tmp_path)["both"])
    given = ["--ckpt", both, "--task", "fashion-fpn", "--device", "cpu"]
    planned = [plan(*given, *more)[0] for more in ((), ("--weights", "ema"), ("--weights", "model"))]
    assert [one["path"] == planned[0]["path"] for one in planned] == [True, True, False]
    assert_refuses_another(main, given, capsys)
