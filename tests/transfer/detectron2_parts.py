"""Head, weights, data order and metrics against detectron2's and pycocotools'. Run by test_detect.py."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from faster_coco_eval import COCO as FastCOCO
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.multiprocessing.spawn import ProcessRaisedException

import transfer.detection.detectron2_engine.head  # noqa: F401
from converters import VerificationError
from transfer.benchmark import read_checkpoint
from transfer.detect import parser
from transfer.detection.detectron2_engine import data, run, weights
from transfer.detection.detectron2_engine.config import resolve
from transfer.detection.detectron2_engine.evaluation import VocEvaluator
from transfer.detection.devices import Devices
from transfer.detection.evaluation import coco_metrics, fractions

CPU = Devices("cpu", 0)


def settings(task: str, arch: str) -> CfgNode:
    return resolve(task, read_checkpoint(f"random:{arch}", 0), CPU, 0)[0]


@pytest.mark.parametrize(
    ("task", "arch", "count"),
    [
        ("coco-c4-1x", "resnet18", 100),
        ("coco-c4-1x", "resnet50", 265),
        ("coco-fpn-b-1x", "resnet50", 265),
        ("coco-retinanet-1x", "resnet18", 100),
    ],
)
def test_every_tensor_of_the_backbone_is_loaded_and_compared(task: str, arch: str, count: int) -> None:
    backbone = read_checkpoint(f"random:{arch}", 7)
    model = build_model(settings(task, arch))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert weights.load_backbone(model, backbone) == count
    after = model.state_dict()
    heads = [name for name in after if name.startswith(("proposal_generator.", "roi_heads.box_", "head."))]
    assert heads
    assert all(torch.equal(before[name], after[name]) for name in heads)


def test_a_built_model_that_is_not_the_backbone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2's own loader only warns when a file's names do not match: here that stops the run."""
    backbone = read_checkpoint("random:resnet18", 7)
    model = build_model(settings("coco-fpn-1x", "resnet18"))
    weights.load_backbone(model, backbone)
    written = weights.TARGETS["detectron2"].save

    def with_a_prefix(self: Any, given: Any, path: Path) -> int:
        return written(given, path, "module.encoder_q.")

    monkeypatch.setattr(type(weights.TARGETS["detectron2"]), "save", with_a_prefix)
    fresh = build_model(settings("coco-fpn-1x", "resnet18"))
    with pytest.raises(VerificationError, match=r"different: conv1\.weight"):
        weights.load_backbone(fresh, backbone)


@pytest.mark.parametrize(("arch", "width", "blocks"), [("resnet18", 512, 2), ("resnet50", 2048, 3)])
def test_the_extra_norm_follows_res5(arch: str, width: int, blocks: int) -> None:
    cfg = settings("coco-c4-1x", arch)
    head = build_model(cfg).roi_heads
    assert type(head).__name__ == "Res5ROIHeadsExtraNorm"
    assert [name for name, _ in head.res5.named_children()] == [*map(str, range(blocks)), "norm"]
    assert isinstance(head.res5.norm, torch.nn.BatchNorm2d)
    assert torch.equal(head.res5.norm.weight, torch.ones(width))
    assert torch.equal(head.res5.norm.bias, torch.zeros(width))
    regions = torch.randn(3, width // 2, 14, 14)
    head.eval()
    head.res5.norm.running_mean.uniform_()
    plain = torch.nn.Sequential(*[head.res5[i] for i in range(blocks)])(regions)
    assert plain.shape == (3, width, 7, 7)
    torch.testing.assert_close(head.res5(regions), head.res5.norm(plain))
    if arch == "resnet50":  # without it, the stage is detectron2's own
        own = build_model(_with(cfg, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads")).roi_heads
        own.res5.load_state_dict({k: v for k, v in head.res5.state_dict().items() if not k.startswith("norm.")})
        torch.testing.assert_close(own.eval().res5(regions), plain)


def _with(cfg: CfgNode, *pairs: Any) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(pairs))
    return cfg


def test_detectron2s_predictor_loads_a_c4_model(tmp_path: Path) -> None:
    cfg = _with(settings("coco-c4-1x", "resnet18"), "INPUT.MIN_SIZE_TEST", 64, "MODEL.RPN.PRE_NMS_TOPK_TEST", 20)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    assert "instances" in DefaultPredictor(cfg)(np.zeros((48, 64, 3), np.uint8))


@pytest.mark.parametrize("start", [0, 1, 7])
def test_batches_equal_those_of_detectron2_from_any_start(start: int) -> None:
    """Grouped by shape as in AspectRatioGroupedDataset, from the same order."""
    wide = np.random.default_rng(0).integers(0, 2, 20).astype(bool).tolist()
    stream = ({"width": 1 + wide[i], "height": 1.5, "image": i} for i in TrainingSampler(20, seed=5))
    theirs = [[row["image"] for row in batch] for batch in itertools.islice(AspectRatioGroupedDataset(stream, 4), 30)]
    ours = data.Batches(TrainingSampler(20, seed=5), 4, wide)
    ours.start = start
    assert [[image for _, image in batch] for batch in itertools.islice(ours, 30 - start)] == theirs[start:]


def test_augmentation_depends_on_the_position_alone() -> None:
    def jitter(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"flip": np.random.rand()}

    images = data.Augmented([{"name": i} for i in range(5)], jitter, seed=3)
    np.random.seed(0)
    first = [images[position, position % 5]["flip"] for position in range(10)]
    np.random.seed(1)
    assert [images[position, position % 5]["flip"] for position in reversed(range(10))] == first[::-1]
    assert len(set(first)) == 10
    assert data.Augmented([{"name": 0}], jitter, seed=4)[0, 0]["flip"] != first[0]


def scattered(seed: int, images: int = 12, classes: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return random COCO annotations, some of them crowds, and detections that match some of them."""
    rng = random.Random(seed)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(rng.randint(0, 5)):
            side = rng.choice([12, 50, 130])
            left, top = rng.uniform(0, 60), rng.uniform(0, 60)
            label = rng.randint(1, classes - 1)  # the last class has no object at all
            row = {"image_id": image, "category_id": label}
            truth.append(row | {
                "id": len(truth) + 1, "bbox": [left, top, side, side], "iscrowd": int(rng.random() < 0.1),
                "segmentation": _disc(left, top, side), "area": float(rle.area(_disc(left, top, side))),
            })  # fmt: skip
            for _ in range(rng.randint(0, 3)):
                dx, dy = rng.gauss(0, side / 10), rng.gauss(0, side / 10)
                found.append(row | {
                    "score": rng.random(), "bbox": [left + dx, top + dy, side, side * rng.uniform(0.8, 1.2)],
                    "category_id": label if rng.random() < 0.8 else rng.randint(1, classes),
                    "segmentation": _disc(left + dx, top + dy, side),
                })  # fmt: skip
    names = [{"id": i, "name": f"class {i}", "frequency": "rcf"[i % 3]} for i in range(1, classes + 1)]
    pictures = [{"id": i, "height": 200, "width": 200, "file_name": f"{i}.jpg"} for i in range(1, images + 1)]
    return {"images": pictures, "annotations": truth, "categories": names, "info": {}}, found


def _disc(left: float, top: float, side: float) -> dict[str, Any]:
    y, x = np.mgrid[:200, :200]
    inside = (x - left - side / 2) ** 2 + (y - top - side / 2) ** 2 <= (side / 2) ** 2
    encoded = rle.encode(np.asfortranarray(inside, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_those_of_pycocotools(kind: str, seed: int, tmp_path: Path) -> None:
    truth, found = scattered(seed)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ours = coco_metrics(FastCOCO(str(tmp_path / "truth.json"), print_function=print), found, kind)
    reference = COCO(str(tmp_path / "truth.json"))
    rows = [{k: v for k, v in row.items() if kind == "bbox" or k != "bbox"} for row in found]
    theirs = COCOeval(reference, reference.loadRes(rows), kind)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    wanted = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), 100 * theirs.stats[:6], strict=True))
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert 1 < wanted["AP"] < 99
    for index, name in enumerate(f"AP-class {i}" for i in range(1, 5)):
        curve = theirs.eval["precision"][:, :, index, 0, 2]
        mean = 100 * curve[curve > -1].mean() if (curve > -1).any() else float("nan")
        assert ours[name] == pytest.approx(mean, abs=1e-9, nan_ok=True)
    assert np.isnan(ours["AP-class 4"])
    assert "bbox/AP-class 4" not in fractions({"bbox": ours})
    assert fractions({"bbox": ours})["bbox/AP"] == pytest.approx(wanted["AP"] / 100)


def test_keypoint_metrics_equal_those_of_pycocotools(tmp_path: Path) -> None:
    truth, found = scattered(5)
    rng = np.random.default_rng(0)
    for row in truth["annotations"]:
        row["category_id"] = 1
        points = np.concatenate([rng.uniform(0, 200, (17, 2)), np.full((17, 1), 2)], 1)
        row |= {"keypoints": points.reshape(-1).tolist(), "num_keypoints": 17}
    found = []
    for row in truth["annotations"]:
        points = np.array(row["keypoints"]).reshape(17, 3) + np.append(rng.normal(0, 6, 2), 0)
        found.append({
            "image_id": row["image_id"], "category_id": 1, "score": float(rng.random()), "bbox": row["bbox"],
            "keypoints": points.reshape(-1).tolist(),
        })  # fmt: skip
    truth["categories"] = truth["categories"][:1]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ours = coco_metrics(FastCOCO(str(tmp_path / "truth.json"), print_function=print), found, "keypoints")
    reference = COCO(str(tmp_path / "truth.json"))
    theirs = COCOeval(reference, reference.loadRes(found), "keypoints")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    wanted = dict(zip(("AP", "AP50", "AP75", "APm", "APl"), 100 * theirs.stats[:5], strict=True))
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert wanted["AP"] > 1


def test_lvis_metrics_of_a_hand_made_example(tmp_path: Path) -> None:
    """By hand: detections of a class that an image does not list are ignored; of one it excludes they are false."""
    box = {"bbox": [10.0, 10.0, 40.0, 40.0], "segmentation": _disc(10, 10, 40), "area": 1256.0, "iscrowd": 0}
    truth: dict[str, Any] = {
        "images": [{"id": 1, "height": 200, "width": 200, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": i, "name": str(i), "frequency": "rcf"[i - 1]} for i in (1, 2, 3)], "info": {},
    }  # fmt: skip
    file = tmp_path / "lvis.json"
    right = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": box["bbox"]}
    wrong = right | {"bbox": [100.0, 100.0, 40.0, 40.0], "score": 0.9}

    def metrics(*found: dict[str, Any]) -> dict[str, float]:
        file.write_text(json.dumps(truth))
        return coco_metrics(FastCOCO(str(file), print_function=print), list(found), "bbox", 300, lvis=True)

    assert metrics(right)["AP"] == pytest.approx(100)
    assert metrics(right)["APr"] == pytest.approx(100)
    assert metrics(right, right | {"category_id": 3, "score": 0.9})["AP"] == pytest.approx(100)
    assert metrics(right, wrong)["AP"] == pytest.approx(50)
    truth["images"][0]["not_exhaustive_category_ids"] = [1]
    assert metrics(right, wrong)["AP"] == pytest.approx(100)


def test_no_detections_give_zero(tmp_path: Path) -> None:
    truth, _ = scattered(0)
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    for kind in ("bbox", "segm"):
        assert coco_metrics(FastCOCO(str(file), print_function=print), [], kind)["AP"] == 0


def test_voc_metrics_equal_those_of_detectron2(tmp_path: Path) -> None:
    """The areas under the curves equal what detectron2 computes for other years than 2007."""
    rng = random.Random(0)
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("\n".join(map(str, range(15))))
    outputs = []
    for image in range(15):
        objects, boxes, classes = [], [], []
        for _ in range(rng.randint(1, 4)):
            left, top, name = rng.randint(0, 50), rng.randint(0, 50), rng.randint(0, 1)
            objects.append(
                f"<object><name>{'ab'[name]}</name><pose>x</pose><truncated>0</truncated>"
                f"<difficult>{int(rng.random() < 0.1)}</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{left + 40}</xmax><ymax>{top + 40}</ymax></bndbox></object>"
            )
            for _ in range(2):
                shift = rng.gauss(0, 5)
                boxes.append([left + shift, top + shift, left + 40 + shift, top + 40 + shift])
                classes.append(name)
        (tmp_path / f"Annotations/{image}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
        instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes)), pred_classes=torch.tensor(classes))
        instances.scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(image))
        outputs.append(({"image_id": str(image)}, {"instances": instances}))
    results = {}
    for kind, evaluator in itertools.product((2007, 2012), (PascalVOCDetectionEvaluator, VocEvaluator)):
        name = f"voc_{kind}_{evaluator.__name__}"
        MetadataCatalog.get(name).set(thing_classes=["a", "b"], dirname=str(tmp_path), year=kind, split="test")
        judge = evaluator(name)
        judge.reset()
        for row, output in outputs:
            judge.process([row], [output])
        results[kind, evaluator.__name__] = judge.evaluate()["bbox"]
    ours, own = results[2007, "VocEvaluator"], results[2007, "PascalVOCDetectionEvaluator"]
    assert {name: ours[name] for name in ("AP", "AP50", "AP75")} == pytest.approx(dict(own))
    later = results[2012, "PascalVOCDetectionEvaluator"]
    assert {name: ours[f"area-{name}"] for name in ("AP", "AP50", "AP75")} == pytest.approx(dict(later))
    assert ours["AP50"] != pytest.approx(ours["area-AP50"])
    assert (ours["AP-a"] + ours["AP-b"]) / 2 == pytest.approx(ours["AP"])


@pytest.mark.parametrize(("raised", "kind", "message"), [
    ("Traceback …\nValueError: the loss is not finite", ValueError, "^the loss is not finite$"),
    ("Traceback …\nRuntimeError: out of memory", ProcessRaisedException, "out of memory"),
])  # fmt: skip
def test_a_mistake_in_another_process_is_reported_alike(
    raised: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*arguments: Any, **options: Any) -> None:
        raise ProcessRaisedException(raised, 0, 1)

    monkeypatch.setattr("detectron2.engine.launch", launch)
    options = parser().parse(["--task", "fashion-fpn", "--ckpt", "random"])
    planned = run.plan_run(options, CPU, 0)
    with pytest.raises(kind, match=message):
        run.launch(planned, planned.cfg, Path(), Devices("cuda", 2), options)
