"""Run every command and every Python block of docs/own_data.md in a fresh clone of the repository.

    UNIMOCO_ENV=FOLDER python tests/benchmarks/fresh_clone.py [--real data/packages]

The folders that the page names are made of small drawn images, and lie in the clone in place of /data. Commands are
those of the page, with options behind them that make a training take seconds (SMALL). Weights of torchvision are drawn
at random, in place of a download. Without --real, the section on real data is left out: its packages are 170 MB. It
takes some minutes; each command and its time are printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.pages import OWN_DATA, commands
from tests.transfer import own_sets
from transfer.tasks import SEGMENTATION

ROOT = Path(__file__).parents[2]
CPU = ["--device=cpu", "--workers=0"]
SMALL = {
    "pretrain/run.sh": [
        "--views.size=32", "--optim.epochs=1", "--optim.batch=32", "--optim.warmup=0", "--model.queue_size=64",
        "--device=cpu", "--data.workers=0",
    ],
    "transfer/knn.py": CPU, "transfer/linear.py": [*CPU, "--size=32"],
    "transfer/finetune.py": [*CPU, "--size=32", "--optim.batch=32", "--optim.epochs=1", "--optim.base_lr=[0.01]"],
    "transfer/compare.sh": ["--device=cpu", "--size=32", "--seeds", "0", "--epochs=1"],
    "transfer/detect.py": [
        "--device=cpu", "--epochs=0.5", "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
    ],
    "transfer/segment.py": ["--device=cpu", "--epochs=0.5"],
    "transfer/scenes.py": ["--train=3", "--val=2", "--size=64"],
}  # fmt: skip
FRAMEWORKS = {"timm": "timm", "torchvision": "torchvision", "detectron2": "detectron2", "mmengine": "openmmlab"}


def make_data(clone: Path) -> None:
    """Write what the page takes for granted: the folders of images, a stranger's checkpoint, a config of mmseg."""
    data, rng = clone / "data", np.random.default_rng(0)
    for split, count in (("train", 110), ("val", 6)):
        for i, name in enumerate(("robin", "wren")):
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                pixels[..., i] += 100
                save(data / "birds" / split / name / f"{number}.png", pixels)
    for number in range(12):
        save(data / "photos_without_labels" / f"{number}.png", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    own_sets.write_coco(data / "pets")
    disc = (255 * (np.hypot(*np.mgrid[-8:8, -8:8]) < 7)).astype(np.uint8)
    for name in ("hammer", "saw"):
        for number in range(5):
            grey = np.full((16, 16, 3), 20 * number + len(name), np.uint8)  # no file is in both classes
            save(data / "tools" / name / f"{number}.png", np.dstack([grey, disc]))
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            labels = np.zeros((48, 64), np.uint8)
            labels[8:40, 10 : 30 + number] = 1
            noise = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
            save(data / "roads" / "images" / split / f"{number}.png", noise + 100 * labels[..., None])
            save(data / "roads" / "masks" / split / f"{number}.png", labels)
    (data / "roads" / "classes.txt").write_text("ground\nroad\n")
    torch.manual_seed(0)
    weights = torchvision.models.resnet50().state_dict()
    torch.save(weights, clone / "dino_r50.pth")
    cached = clone / "torch" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    cached.parent.mkdir(parents=True)
    torch.save(weights, cached)
    code = (
        f"from mmengine.config import Config\nc = Config.fromfile({str(SEGMENTATION.folder / 'bases/fcn-d8.yaml')!r})\n"
    )
    code += "open('your_config.py', 'w').write(Config({'model': c.model}).pretty_text)\n"
    subprocess.run([sys.executable, "-c", code], cwd=clone, check=True)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def steps(page: str, clone: Path) -> list[tuple[str, list[str]]]:
    """Return a title and the words of each command, in the order of the page."""
    found = []
    for kind, block in re.findall(r"^```(bash|python)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        block = re.sub(r"(?<![\w.])/data/", f"{clone}/data/", block)
        if kind == "bash":
            for words in commands(f"```bash\n{block}```"):
                if words[2:4] == ["--ckpt", "X"]:  # the page's word for any checkpoint
                    words[3] = "runs/birds/last.pth"
                small = [w for w in SMALL.get(words[1], []) if w != "--epochs=1" or "--quick" not in words]
                found.append((shlex.join(words), [*words, *small]))
            continue
        package = next((name for name in FRAMEWORKS if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)), "")
        if package:
            words = ["python", "converters/convert.py", "runs/birds/last.pth", "--to", FRAMEWORKS[package]]
            found.append((shlex.join(words), words))
        code = block.replace("model = build_model", "cfg.MODEL.DEVICE = 'cpu'\nmodel = build_model")
        found.append((f"Python: {block.splitlines()[0]}", ["python", "-c", code]))
    return found


def main() -> int:
    """Run the page; return 0, or 1 where a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--real", type=Path, help="run the section on real data, too, with the downloads in this folder"
    )
    options = parser.parse_args()
    page = OWN_DATA.read_text(encoding="utf-8")
    if options.real is None:
        page = re.sub(r"^## On real data\n.*?(?=^## )", "", page, flags=re.DOTALL | re.MULTILINE)
    began, failed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "clone")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        make_data(clone)
        if options.real is not None:
            shutil.copytree(options.real, clone / "data" / "packages")
        bin_folder = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "TORCH_HOME": str(clone / "torch")}
        environment.pop("PYTHONPATH", None)
        for title, words in steps(page, clone):
            start = time.perf_counter()
            done = subprocess.run(
                words, cwd=clone, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
            said = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
            print(f"{time.perf_counter() - start:6.1f} s  {said:6} {title}".replace(str(clone), ""), flush=True)
            if done.returncode:
                failed += 1
                print((done.stdout + done.stderr)[-3000:], flush=True)
    print(f"{time.perf_counter() - began:.0f} s, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
