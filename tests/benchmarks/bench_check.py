"""How long the check of the data takes, first and second run, on stand-ins of the right number and size.

python tests/benchmarks/bench_check.py --record results/benchmarks/check.jsonl
taskset -c 0,1 python tests/benchmarks/bench_check.py --sets ade20k      on two cores of a larger machine

The command itself is run with --check-data, in an empty folder, so that the first run finds no cache. Files were just
written, so they are read from memory: a disk adds its own time. `cpu` is the time of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from common.run_folder import environment

ROOT = Path(__file__).parents[2]
DISTINCT = 16  # masks; the others are copies of them


def masks(width: int, height: int, classes: int, region: int) -> list[bytes]:
    """Return PNG files of masks: regions of about region x region pixels with ragged borders; all classes are shown."""
    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        shape = (height // region + 2, width // region + 2)
        small = np.resize(rng.permutation(classes), shape).astype(np.uint8)
        rows, columns = np.mgrid[:height, :width]
        wave = region / 6 * np.sin(rows / 9 + rng.random()), region / 6 * np.cos(columns / 11 + rng.random())
        noise = rng.normal(0, 1, (2, height, width))
        y = np.clip((rows + wave[1] + noise[0]) / region, 0, shape[0] - 1).astype(int)
        x = np.clip((columns + wave[0] + noise[1]) / region, 0, shape[1] - 1).astype(int)
        files.append(cv2.imencode(".png", small[y, x])[1].tobytes())
    return files


def write_pairs(names: list[tuple[Path, Path]], contents: list[bytes], size: tuple[int, int]) -> None:
    """Write a mask for each (image, mask), and links to one image, of which only header and end are read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for i, (image, mask) in enumerate(names):
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        if i == 0:
            noise.save(image)
        else:
            os.link(names[0][0], image)
        mask.write_bytes(contents[i % DISTINCT])


def write_ade20k(root: Path) -> None:
    """Write 20,210 training and 2,000 test images and masks of 683 x 512 pixels, labels 0 to 150."""
    ade, names = root / "ade" / "ADEChallengeData2016", []
    for split, count in (("training", 20210), ("validation", 2000)):
        stems = [f"ADE_{split}_{i:08}" for i in range(count)]
        names += [(ade / f"images/{split}/{s}.jpg", ade / f"annotations/{split}/{s}.png") for s in stems]
    write_pairs(names, masks(683, 512, 151, 40), (683, 512))


def write_cityscapes(root: Path) -> None:
    """Write 2,975 training and 500 test images and masks of 2048 x 1024 pixels, 19 classes."""
    city, names = root / "cityscapes", []
    for split, count in (("train", 2975), ("val", 500)):
        stems = [f"{split}/ulm/ulm_{i:06}_000019" for i in range(count)]
        names += [
            (city / f"leftImg8bit/{s}_leftImg8bit.png", city / f"gtFine/{s}_gtFine_labelTrainIds.png") for s in stems
        ]
    write_pairs(names, masks(2048, 1024, 19, 60), (2048, 1024))


def polygons(count: int) -> list[str]:
    """Return annotations as JSON, with %d for image, category and id: polygons of 3 to 60 points, 25 on average."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        points = int(np.clip(rng.normal(25, 12), 3, 60))
        size = np.minimum(np.exp(rng.uniform(np.log(8), np.log([400, 300]))), [600, 440])
        angles, radii = np.linspace(0, 2 * np.pi, points, endpoint=False), rng.uniform(0.6, 1, points)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        shape = (rng.uniform(0, np.array([639, 479]) - size) + size / 2 * (1 + circle)).round(2)
        box = np.append(shape.min(0), np.ptp(shape, 0)).round(2).tolist()
        x, y = shape.T
        area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        row = {"segmentation": [shape.reshape(-1).tolist()], "area": area, "iscrowd": 0, "bbox": box}
        rows.append(json.dumps(row)[:-1] + ', "image_id": %d, "category_id": %d, "id": %d}')
    return rows


def write_coco(root: Path) -> None:
    """Write COCO's train2017 and val2017 with as many images and annotations, a file of 470 MB and one of 20 MB."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    rng, pool = random.Random(0), polygons(3000)
    categories = [{"id": row["id"], "name": row["name"]} for row in COCO_CATEGORIES if row["isthing"]]
    picture = cv2.imencode(".jpg", np.full((480, 640, 3), 90, np.uint8))[1].tobytes()
    for split, images, objects in (("train2017", 118_287, 860_001), ("val2017", 5_000, 36_781)):
        folder, names = root / "coco" / split, [f"{4 * i + 9:012}.jpg" for i in range(images)]
        folder.mkdir(parents=True)
        for i, name in enumerate(names):
            if i % 1000 == 0:
                (folder / name).write_bytes(picture)
            else:
                os.link(folder / names[i - i % 1000], folder / name)
        listed = [{"id": 4 * i + 9, "file_name": name, "width": 640, "height": 480} for i, name in enumerate(names)]
        rows = (
            rng.choice(pool) % (4 * rng.randrange(images) + 9, rng.choice(categories)["id"], number + 1)
            for number in range(objects)
        )
        head = json.dumps({"images": listed, "categories": categories})[:-1]
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        with open(root / "coco" / "annotations" / f"instances_{split}.json", "w", encoding="utf-8") as file:
            file.write(f'{head}, "annotations": [{", ".join(rows)}]}}')


# Name -> what writes the stand-in below a folder, and the command that checks it.
SETS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "coco": (write_coco, ["transfer/detect.py", "--task", "coco-fpn-1x"]),
    "ade20k": (write_ade20k, ["transfer/segment.py", "--task", "ade20k-fcn-80k"]),
    "cityscapes": (write_cityscapes, ["transfer/segment.py", "--task", "cityscapes-fcn-40k"]),
}


def timed(command: list[str], root: Path) -> dict[str, float]:
    """Return the seconds of a check: as it says itself, of the whole command, and of all its processes together.

    Raises:
        ValueError: the check fails.
    """
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), "--ckpt", "random", "--data-root", str(root), "--check-data",
         *command[1:]],
        cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"data check passed in ([\d.]+) s", done.stdout)
    if not found:
        raise ValueError(done.stderr)
    print(done.stdout.strip())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"check": float(found[1]), "command": time.perf_counter() - began, "cpu": cpu}


def processor() -> str:
    """Return the name of the CPU."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def main() -> None:
    """Write the stand-ins, check them twice, and print and append the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), help="default: all")
    parser.add_argument("--record", type=Path, help="file to append one JSON line per set to")
    options = parser.parse_args()
    for name in options.sets:
        write, command = SETS[name]
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            rounds = {"first": timed(command, Path(folder)), "second": timed(command, Path(folder))}
        cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        row = {"set": name, "seconds": rounds, "cpu_name": processor(), "cores": cores, "load": load}
        print(json.dumps(row))
        if options.record:
            with options.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | environment(torch.device("cpu"))) + "\n")


if __name__ == "__main__":
    main()
