"""detectron2 and OpenMMLab, each in its own process: converted files are equal, and every damage is detected."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from converters import read_backbone
from converters.verify import verify
from tests.pages import documented

# Runs in the framework's process: convert, verify, then change one setting at a time and verify again.
SCRIPT = """
import json, os, sys
from pathlib import Path
import converters
from converters import conversion, verify
target, arch, folder, breakages, snippet = *sys.argv[1:3], Path(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5]
suffix = {"detectron2": (".pkl", ".yaml"), "openmmlab": (".pth", ".py")}[target]
folder.mkdir()
path = folder / f"checkpoint.{target}{suffix[0]}"
done = conversion.convert(f"random:{arch}", target, str(path), check="yes")
found = {"checks": [[c.model, c.tensors, c.convs, c.norms, max(c.deltas.values())] for c in done.checks]}
other = conversion.convert("random:resnext50_32x4d", target, str(folder / f"next{suffix[0]}"), check="yes")
found["resnext"] = [[c.model, c.tensors] for c in other.checks]
os.chdir(folder)
Path("your_config.py").write_text("model = dict(backbone=dict(type='ResNet', depth=18))")
exec(snippet)
found["documented"] = (
    [cfg.MODEL.WEIGHTS, cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1]
    if target == "detectron2"
    else [cfg.model.backbone.init_cfg.checkpoint, cfg.model.data_preprocessor.bgr_to_rgb, cfg.model.backbone.depth]
)
settings = path.with_suffix(suffix[1])
whole = settings.read_text()
for name, (old, new) in breakages.items():
    assert old in whole, (old, whole)
    settings.write_text(whole.replace(old, new))
    try:
        verify.verify(done.reading.backbone, target, path, verify.photograph(64))
        found[name] = "not detected"
    except converters.VerificationError as error:
        found[name] = str(error)
"""
# mmdet's C4 networks hold layer4 as roi_head.shared_head, a module with that one child and an init_cfg of its own.
SHARED_HEAD = """
from mmengine.config import Config
from mmengine.model import BaseModule
from mmseg.models.backbones.resnet import Bottleneck
from mmseg.models.utils import ResLayer
for prefix in ("", "backbone."):
    path = folder / f"shared{prefix}.pth"
    done = conversion.convert(f"random:{arch}", target, str(path), prefix=prefix, check="yes")
    head = BaseModule(Config.fromfile(path.with_suffix(".py")).shared_head.init_cfg)
    head.add_module("layer4", ResLayer(Bottleneck, 1024, 512, 3, stride=2))
    head.init_weights()
    tensors = {k: v for k, v in done.reading.backbone.tensors.items() if k.startswith("layer4.")}
    state = head.state_dict()
    equal = set(state) == set(tensors) and all((state[k] == tensors[k]).all() for k in tensors)
    found["shared head " + prefix] = [done.checks[0].tensors, len(tensors), bool(equal)]
"""
DETECTRON2 = {
    "stride in 1x1": ("STRIDE_IN_1X1: False", "STRIDE_IN_1X1: True"),
    "BGR": ('FORMAT: "RGB"', 'FORMAT: "BGR"'),
    "mean": ("123.675", "103.53"),
    "depth": ("DEPTH: 50", "DEPTH: 101"),
}
OPENMMLAB = {
    "caffe style": ("style='pytorch'", "style='caffe'"),
    "BGR": ("bgr_to_rgb=True", "bgr_to_rgb=False"),
    "V1c stem": ("type='ResNet'", "type='ResNetV1c'"),
    "std": ("58.395", "1.0"),
    "nothing loaded": ("norm_eval=False, init_cfg=init_cfg),\n)", "norm_eval=False),\n)"),
    "prefix": ("init_cfg = dict(type='Pretrained'", "init_cfg = dict(prefix='backbone.', type='Pretrained'"),
}


Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """Return what each framework's process found; the two run in parallel."""
    processes, folder = {}, tmp_path_factory.mktemp("frameworks")
    snippets = {"detectron2": documented("detectron2"), "openmmlab": documented("mmengine")}
    for target, breakages, more in (("detectron2", DETECTRON2, ""), ("openmmlab", OPENMMLAB, SHARED_HEAD)):
        code = f"{SCRIPT}\n{more}\nprint(json.dumps(found))"
        args = ["-c", code, target, "resnet50", str(folder / target), json.dumps(breakages), snippets[target]]
        processes[target] = subprocess.Popen([sys.executable, *args], stdout=-1, stderr=-1, text=True)
    outputs = {target: process.communicate() for target, process in processes.items()}
    shutil.rmtree(folder)
    results = {}
    for target, process in processes.items():
        out, err = outputs[target]
        assert process.returncode == 0, err
        results[target] = json.loads(out.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def detectron2(found: dict[str, Found]) -> Found:
    return found["detectron2"]


@pytest.fixture(scope="module")
def openmmlab(found: dict[str, Found]) -> Found:
    return found["openmmlab"]


def test_detectron2_holds_all_53_convolutions_and_norms_in_fpn_and_c4(detectron2: Found) -> None:
    fpn, c4 = detectron2["checks"]
    assert fpn[:4] == ["detectron2 Mask R-CNN resnet50 FPN", 265, 53, 53]
    assert c4[:4] == ["detectron2 Mask R-CNN resnet50 C4", 265, 53, 53]
    assert max(fpn[4], c4[4]) <= 1e-4


def test_mmseg_holds_all_318_tensors(openmmlab: Found) -> None:
    (check,) = openmmlab["checks"]
    assert check[:4] == ["mmseg ResNet resnet50", 318, 53, 53]
    assert check[4] <= 1e-4


def test_resnext_keeps_its_groups(detectron2: Found, openmmlab: Found) -> None:
    assert [tensors for _, tensors in detectron2["resnext"]] == [265, 265]
    assert openmmlab["resnext"] == [["mmseg ResNeXt resnext50_32x4d", 318]]


def test_the_documented_detectron2_lines_set_up_a_config(detectron2: Found) -> None:
    assert detectron2["documented"] == ["checkpoint.detectron2.pkl", "RGB", False]


def test_the_documented_openmmlab_lines_set_up_a_config(openmmlab: Found) -> None:
    checkpoint, bgr_to_rgb, depth = openmmlab["documented"]
    assert (Path(checkpoint).name, bgr_to_rgb, depth) == ("checkpoint.openmmlab.pth", True, 50)


FEATURES = "holds the same tensors and gives other features: layer1 by"


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("stride in 1x1", FEATURES.replace("1 by", "1 by 0, layer2 by")),
        ("BGR", FEATURES),
        ("mean", FEATURES),
        ("depth", "255 left over: layer3.6"),
    ],
)
def test_detectron2_breakages_are_detected(breakage: str, message: str, detectron2: Found) -> None:
    assert message in detectron2[breakage]


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("caffe style", FEATURES.replace("1 by", "1 by 0, layer2 by")),
        ("BGR", FEATURES),
        ("V1c stem", "1 absent: conv1.weight; 13 left over: conv1.0.weight"),
        ("std", FEATURES),
        ("nothing loaded", "different: conv1.weight"),
        ("prefix", "openmmlab could not load"),
    ],
)
def test_openmmlab_breakages_are_detected(breakage: str, message: str, openmmlab: Found) -> None:
    assert message in openmmlab[breakage]


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_openmmlab_with_and_without_prefix_and_mmdets_shared_head(prefix: str, openmmlab: Found) -> None:
    assert openmmlab["shared head " + prefix] == [318, 60, True]


@pytest.mark.parametrize(("target", "rival"), [("detectron2", "mmengine"), ("openmmlab", "detectron2")])
def test_detectron2_and_openmmlab_do_not_share_a_process(
    target: str, rival: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, rival, sys)
    with pytest.raises(ValueError, match=f"{rival} is loaded in this process: verify for {target} in another"):
        verify(read_backbone("random:resnet18"), target, tmp_path / "x.pkl")


@pytest.mark.parametrize("target", ["detectron2", "openmmlab"])
def test_a_missing_framework_names_the_command(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.verify.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"is not installed: bash setup\.sh installs it"):
        verify(read_backbone("random:resnet18"), target, tmp_path / "x.pkl")
