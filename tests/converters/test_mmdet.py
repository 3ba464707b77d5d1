"""mmdet, in a process of its own: converted files are equal in FPN and C4 detectors, and every damage is detected."""

import json
import subprocess
import sys
from importlib.machinery import PathFinder
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(PathFinder.find_spec("mmdet") is None, reason="mmdet is not installed: bash setup.sh")
SCRIPT = """
import json, sys
from pathlib import Path
import converters
from converters import conversion, verify
folder, breakages = Path(sys.argv[1]), json.loads(sys.argv[2])
conversion.convert("random:resnet18", "openmmlab", str(folder / "mmseg.pth"), check="yes")  # they may share a process
found = {}
for arch in ("resnet18", "resnext50_32x4d", "resnet50d", "resnet50"):
    done = conversion.convert(f"random:{arch}", "mmdet", str(folder / f"{arch}.pth"), check="yes")
    found[arch] = [[c.model, c.tensors, c.convs, c.norms, max(c.deltas.values())] for c in done.checks]
settings = folder / "resnet50.py"
for config in ("retinanet/retinanet_r50_fpn_1x_coco.py", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"):
    built = verify.detector(config, settings)
    state = converters.backbone_state(built.model.state_dict(), "openmmlab")
    found[config] = [type(built.model).__name__, done.reading.backbone.compare(state)]
whole = settings.read_text()
for name, (old, new) in breakages.items():
    assert old in whole, (old, whole)
    settings.write_text(whole.replace(old, new))
    try:
        verify.verify(done.reading.backbone, "mmdet", folder / "resnet50.pth", verify.photograph(64))
        found[name] = "not detected"
    except converters.VerificationError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
FEATURES = "holds the same tensors and gives other features: layer1 by"
BREAKAGES = {
    "caffe style": ("style='pytorch', frozen", "style='caffe', frozen", FEATURES.replace("1 by", "1 by 0, layer2 by")),
    "caffe style of the C4 head": (
        "style='pytorch', norm",
        "style='caffe', norm",
        "C4 holds the same tensors and gives",
    ),
    "BGR": ("bgr_to_rgb=True", "bgr_to_rgb=False", FEATURES),
    "std": ("58.395", "1.0", FEATURES),
    "nothing loaded": (
        "norm_eval=False, init_cfg=init_cfg),\n)",
        "norm_eval=False, init_cfg=None),\n)",
        "different: conv1",
    ),
    "no C4 head loaded": ("norm_eval=False, init_cfg=init_cfg)\n", "norm_eval=False)\n", "different: layer4.0.conv1"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what mmdet's process found."""
    breakages = json.dumps({name: (old, new) for name, (old, new, _) in BREAKAGES.items()})
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path_factory.mktemp("mmdet")), breakages]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arch", "heads", "tensors", "layers"),
    [
        ("resnet50", ["FPN", "C4"], 318, 53),
        ("resnet18", ["FPN", "C4"], 120, 20),
        ("resnext50_32x4d", ["FPN"], 318, 53),
        ("resnet50d", ["FPN"], 330, 55),
    ],
)
def test_mask_rcnn_holds_every_tensor(
    arch: str, heads: list[str], tensors: int, layers: int, found: dict[str, Any]
) -> None:
    titles = [f"mmdet Mask R-CNN {arch} {head}" for head in heads]
    assert [check[:4] for check in found[arch]] == [[title, tensors, layers, layers] for title in titles]
    assert max(check[4] for check in found[arch]) <= 1e-4


def test_configs_that_mmdet_ships_hold_every_tensor(found: dict[str, Any]) -> None:
    assert found["retinanet/retinanet_r50_fpn_1x_coco.py"] == ["RetinaNet", 318]
    assert found["faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"] == ["FasterRCNN", 318]


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_breakages_are_detected(breakage: str, found: dict[str, Any]) -> None:
    assert BREAKAGES[breakage][2] in found[breakage]
