"""Options, launchers and users' configs. Run by test_segment.py in a process of its own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import mmseg
import pytest
import torch
from mmseg.registry import MODELS

from results.record import hash_config
from tests.transfer.mmseg_configs import resolve
from tests.transfer.two_sets import KIND, TRIED, assert_refuses_another, write_two_sets
from transfer.benchmark import read_checkpoint
from transfer.openmmlab import devices
from transfer.openmmlab.config import limit_workers, recorded
from transfer.openmmlab.weights import ModelBackbone
from transfer.segment import main
from transfer.segmentation import config
from transfer.tasks import SEGMENTATION

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.backbone.type=ResNetV1c", "model.backbone.type='ResNetV1c': random:resnet50?seed=0 needs 'ResNet'"),
        ("model.backbone.style=caffe", "model.backbone.style"),
        ("model.backbone.frozen_stages=1", "model.backbone.frozen_stages"),
        ("model.data_preprocessor.bgr_to_rgb=False", "model.data_preprocessor.bgr_to_rgb"),
        ("model.data_preprocessor.mean=[0,0,0]", "model.data_preprocessor.mean"),
        ("train_cfg.max_iter=2", None),  # taken: the loop's constructor refuses it
        ("optim_wraper.optimizer.lr=1", "did you mean optim_wrapper"),
        ("train_dataloader.batchsize=1", "did you mean batch_size"),
        ("train_pipeline=[]", "no such key"),
        ("param_scheduler.3.end=1", "no param_scheduler.3"),
        ("lr", "must be KEY=VALUE"),
    ],
)
def test_an_override_that_would_do_nothing_or_harm_is_refused(option: str, message: str | None) -> None:
    if message is None:
        resolve("voc12aug-fcn-20k", "--cfg-options", option)
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve("voc12aug-fcn-20k", "--cfg-options", option)


def test_overrides_reach_into_lists() -> None:
    plan = resolve("voc12aug-fcn-20k", "--cfg-options", "param_scheduler.0.end=7", "model.backbone.with_cp=True")
    assert plan.cfg.param_scheduler[0].end == 7
    assert plan.cfg.model.backbone.with_cp is True


OVERRIDES = [
    (),
    ("--amp",),
    ("--accumulate", "2"),
    ("--batch", "8"),
    ("--no-scale",),
    *(
        ("--cfg-options", *words.split())
        for words in (
            "param_scheduler.0.power=2", "param_scheduler.0.eta_min=0", "optim_wrapper.optimizer.lr=1",
            "optim_wrapper.optimizer.momentum=0.5", "optim_wrapper.optimizer.nesterov=True",
            "optim_wrapper.clip_grad={max_norm:1}", "train_cfg.max_iters=9", "train_dataloader.batch_size=9",
            "model.decode_head.dropout_ratio=0", "model.auxiliary_head.loss_decode.loss_weight=1",
            "model.decode_head.loss_decode.avg_non_ignore=True", "model.auxiliary_head=None", "images=None",
            "images.train=5", "train_dataloader.dataset.datasets.1.pipeline.4.prob=0", "model.test_cfg.crop_size=9,9",
            "train_dataloader.dataset.datasets.0.pipeline=[]", "val_dataloader.dataset.ann_file=train.txt",
            "model.test_cfg.mode=slide model.test_cfg.crop_size=64,64 model.test_cfg.stride=43,43",
            "model.test_cfg.mode=slide model.test_cfg.crop_size=64,64 model.test_cfg.stride=42,43",
        )
    ),
]  # fmt: skip


def test_options_that_change_the_metrics_change_config_and_title(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ModelBackbone.of(read_checkpoint("random:resnet18", 0))
    monkeypatch.setattr(ModelBackbone, "of", lambda backbone: weights)  # converting it takes most of the time
    plans = [resolve("voc12aug-fcn-20k", *options, arch="resnet18") for options in OVERRIDES]
    for one in range(len(plans)):
        for other in range(one):
            pair = OVERRIDES[one], OVERRIDES[other]
            assert plans[one].config != plans[other].config, pair
            assert plans[one].title != plans[other].title, pair
    assert "changed" not in plans[0].title
    assert plans[1].title == plans[0].title + ", bfloat16 autocast"
    assert plans[5].title == plans[0].title + "; changed: param_scheduler.0.power=2"


@pytest.mark.parametrize(
    "option",
    [
        "train_dataloader.num_workers=0", "train_cfg.val_interval=7", "default_hooks.logger.interval=3",
        "param_scheduler.0.power=0.90", "val_dataloader.batch_size=2", "model.data_preprocessor.size=[512,512]",
    ],
)  # fmt: skip
def test_options_that_change_no_metrics_keep_config_and_title(option: str) -> None:
    plain, other = resolve("voc12aug-fcn-20k"), resolve("voc12aug-fcn-20k", "--cfg-options", option)
    assert plain.title == other.title
    assert json.dumps(plain.config) == json.dumps(other.config)


def test_records_of_fashion_fcn_keep_their_hash() -> None:
    plan = resolve("fashion-fcn", arch="resnet18")
    assert hash_config(plan.config) == "28c8dc110413"
    assert plan.title == (
        "FCNHead on ResNet-18, stride 8, BN, scenes, 300 iterations of 4, crop 96x96, AdamW lr 0.001 wd 0.01 PolyLR, "
        "whole image, single scale"
    )


def test_the_recorded_config_holds_no_paths_and_workers() -> None:
    one = resolve("ade20k-fcn-80k")
    other = resolve("ade20k-fcn-80k", "--cfg-options", "train_dataloader.num_workers=9", "train_cfg.val_interval=5")
    third = resolve("ade20k-fcn-80k", "--cfg-options", "optim_wrapper.optimizer.lr=1")
    kept = [recorded(plan.cfg, plan.batch) for plan in (one, other, third)]
    assert kept[0] == kept[1] != kept[2]


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of the sixth of eight tasks on two nodes, and scontrol."""
    tool = tmp_path / "scontrol"
    tool.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(os, "environ", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    given = {
        "NODELIST": "node[1-2]", "PROCID": "5", "NTASKS": "8", "LOCALID": "1", "NODEID": "1",
        "TASKS_PER_NODE": "4(x2)", "STEP_NUM_TASKS": "8",
    }  # fmt: skip
    os.environ.update({f"SLURM_{name}": value for name, value in given.items()})
    return os.environ  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("tasks_per_node", "node", "here"), [("4(x2)", 1, "4"), ("5,3", 1, "3"), ("5,3", 0, "5"), ("2(x3),2", 3, "2")]
)
@pytest.mark.parametrize("launcher", ["auto", "slurm"])
def test_srun_is_found_and_translated_for_torch(
    launcher: str, tasks_per_node: str, node: int, here: str, srun: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[dict[str, str]] = []
    monkeypatch.setattr(devices, "start", lambda device: joined.append(dict(srun)) or torch.device("cpu"))
    srun |= {"SLURM_TASKS_PER_NODE": tasks_per_node, "SLURM_NODEID": str(node)}
    devices.join(launcher)
    wanted = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": here, "MASTER_ADDR": "node1"}
    assert {name: joined[0].get(name) for name in wanted} == wanted
    assert joined[0]["MASTER_PORT"].isdigit()


@pytest.mark.parametrize(
    ("launcher", "more"),
    [("none", {}), ("auto", {"SLURM_STEP_NUM_TASKS": "1"})],
)
def test_a_single_task_joins_no_group(
    launcher: str, more: dict[str, str], srun: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "start", lambda device: torch.device("cpu"))
    srun |= more
    devices.join(launcher)
    assert "RANK" not in srun


def test_torchrun_below_srun_is_kept(srun: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "start", lambda device: torch.device("cpu"))
    srun |= {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    devices.join("auto")
    assert srun["RANK"] == "2"


def test_a_broken_launch_is_named(srun: dict[str, str], tmp_path: Path) -> None:
    srun["PATH"] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"scontrol cannot name the first of node\[1-2\] .*set MASTER_ADDR"):
        devices.join("auto")
    srun["RANK"] = "0"
    with pytest.raises(ValueError, match="RANK is set and LOCAL_RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR not"):
        devices.join("auto")


def test_workers_fit_the_cores_and_at_least_one_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for cores, processes, wanted in ((8, "1", 4), (8, "4", 1), (1, "1", 1), (2, "8", 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        cfg = config.read_task("ade20k-fcn-80k")
        limit_workers(cfg)
        assert cfg.train_dataloader.num_workers == wanted
        assert cfg.train_dataloader.persistent_workers is True
        cfg = config.read_task("fashion-fcn")
        limit_workers(cfg)
        assert cfg.train_dataloader.num_workers == 0


STOCK = Path(mmseg.__file__).parent / ".mim" / "configs" / "fcn" / "fcn_r50-d8_4xb2-40k_cityscapes-769x769.py"


def test_a_stock_config_must_name_the_processes_of_its_schedule(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add reference_processes = N, the number of processes, with 2 images each"):
        resolve(str(STOCK))
    mine = tmp_path / "mine.py"
    for more in ("reference_processes = 4", "auto_scale_lr = dict(enable=False, base_batch_size=8)"):
        mine.write_text(f"_base_ = '{STOCK}'\n{more}\n")
        plan = resolve(str(mine))
        assert (plan.batch, plan.cfg.train_cfg.max_iters) == (2, 160000), more
        assert plan.cfg.optim_wrapper.optimizer.lr == pytest.approx(0.0025)
        assert (plan.cfg.model.backbone.type, plan.cfg.model.pretrained) == ("ResNet", None)
    for more, message in (
        ("reference_processes = 0", "reference_processes=0: must be an integer"),
        ("auto_scale_lr = dict(base_batch_size=7)", "base_batch_size=7 is no multiple of batch_size=2"),
    ):
        mine.write_text(f"_base_ = '{STOCK}'\n{more}\n")
        with pytest.raises(ValueError, match=message):
            resolve(str(mine))


def test_a_stock_config_gets_the_weights_of_ckpt(tmp_path: Path) -> None:
    text = f"""
_base_ = "{SEGMENTATION.folder / "voc12aug-fcn-20k.yaml"}"
model = dict(pretrained="open-mmlab://resnet50_v1c", backbone=dict(type="ResNetV1c", depth=101))
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
default_hooks = dict(visualization=dict(type="SegVisualizationHook"))
"""
    (tmp_path / "mine.py").write_text(text)
    cfg = resolve(str(tmp_path / "mine.py")).cfg
    assert (cfg.model.backbone.type, cfg.model.backbone.depth, cfg.model.pretrained) == ("ResNet", 50, None)
    assert cfg.val_evaluator.type == "ClassIoU"
    with pytest.raises(ValueError, match="the weights come from --ckpt"):
        resolve("voc12aug-fcn-20k", "--cfg-options", "model.pretrained=weights.pth")


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """Return what the command prints with --dry-run."""
    assert main([*options, "--dry-run"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_a_dry_run_keeps_the_hash_of_the_records_of_fashion_fcn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no data set and writes nothing."""
    folders = ("--data-root", "/no/data", "--out", str(tmp_path / "out"), "--records", str(tmp_path / "records"))
    planned = plan(capsys, "--ckpt", "random:resnet18?seed=0", "--task", "fashion-fcn", "--device", "cpu", *folders)
    assert planned["config_hash"] == "28c8dc110413"
    assert planned["config"] == json.loads((ROOT / "results" / "records" / planned["path"]).read_text())["config"]
    real = MODELS.build(resolve("fashion-fcn", arch="resnet18").cfg.model)
    assert planned["takes"]["parameters"] == sum(p.numel() for p in real.parameters())
    assert not list(tmp_path.iterdir())


def test_a_dry_run_plans_for_gpus_that_are_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    planned = plan(capsys, "--ckpt", "random", "--task", "voc12aug-fcn-20k", "--device", "cuda")
    assert planned["config"]["batch"] == 16
    assert planned["config"]["model"]["backbone"]["norm_cfg"]["type"] == "SyncBN"
    assert "ResNet-50, stride 8, SyncBN, VOCdevkit/VOC2012, 20000 iterations of 16" in planned["title"]
    takes = planned["takes"]
    assert (takes["iterations"], takes["batch"], takes["image"]) == (20000, 4, [512, 512])
    # Multiply-adds by hand, in G: stem 0.62, stages 3.49, 5.37, 28.99 and 61.20 (from the second on at 64 x 64), the
    # three convolutions of the head 38.65, 9.66 and 48.32, the classifier 0.04.
    assert takes["flops"] == pytest.approx(2 * 196.34e9, rel=0.001)
    monkeypatch.setenv("RANK", "1")  # of several processes the first one prints the plan
    assert main(["--ckpt", "random", "--task", "voc12aug-fcn-20k", "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [("my_task.py", "_base_ = '{}'\ntrain_cfg = dict(max_iters=10)\n"),
     ("my_task.yaml", "_base_: {}\ntrain_cfg: {{max_iters: 10}}\n")],
)  # fmt: skip
def test_a_user_s_config_gives_its_name_to_the_task(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / name
    mine.write_text(text.format(SEGMENTATION.find("fashion-fcn")))
    planned = plan(capsys, "--ckpt", "random:resnet18", "--task", str(mine), "--device", "cpu")
    assert (planned["task"], planned["path"].split("/")[0]) == ("my_task", "my_task")
    assert "10 iterations of 4" in planned["title"]


@pytest.mark.fault(KIND, "segment", TRIED)
def test_the_chosen_weights_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--ckpt", str(write_two_sets(tmp_path)["both"]), "--task", "fashion-fcn", "--device", "cpu"]
    planned = [plan(capsys, *given, *more) for more in ((), ("--weights", "ema"), ("--weights", "model"))]
    assert [one["path"] == planned[0]["path"] for one in planned] == [True, True, False]
    assert_refuses_another(main, given, capsys)
