"""Data sets that nobody here made, from pinned packages of npm and PyPI: emoji of three vendors, trees from the air.

python tests/benchmarks/real_sets.py --out data/real

    OUT/emoji/train/CLASS/VENDOR-CODE.png   24 classes: the subgroups of Unicode with 15 emoji or more, of five groups
    OUT/emoji/val/CLASS/                    a fifth of the emoji, no vendor's drawing of which is in train/
    OUT/emoji/unlabelled/                   the emoji of all other groups
    OUT/trees/                              COCO's layout: photographs in tiles of 256 px, boxes drawn by hand

Licences, as the packages state them: the README of emoji-datasource-* has CC-BY 4.0 for Twitter's images and Apache 2.0
for Google's; its LICENSE, MIT, is of its data. @lobehub/fluent-emoji-3d says MIT of itself, names Microsoft as the
source, and states no licence of the images themselves. deepforest's LICENSE is MIT; it states none of its own for the
photographs. None of the images is in this repository.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: find the packages of the project
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.images import decode, save_png

NPM = {  # package and version -> file, sha512 (base64), folder of its pictures
    "emoji-datasource-twitter@16.0.0": (
        "emoji-datasource-twitter-16.0.0.tgz",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64",
    ),
    "emoji-datasource-google@16.0.0": (
        "emoji-datasource-google-16.0.0.tgz",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64",
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "package/assets",
    ),
}
WHEEL = "deepforest-2.1.0-py3-none-any.whl"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
LEAST = 15  # emoji of a class
TESTED = 5  # one emoji in so many is tested on
PHOTOGRAPHS = {"train": "2019_YELL_2_528000_4978000_image_crop2", "val": "2019_YELL_2_541000_4977000_image_crop"}
TILE = 256  # pixels
VISIBLE = 0.5  # least part of a box inside of a tile; boxes with less are left out


def fetch(folder: Path) -> None:
    """Download the packages with npm and pip, where they are missing, and compare them with their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, (name, wanted, _) in NPM.items():
        if not (folder / name).is_file():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        _compare(
            folder / name, base64.b64encode(hashlib.sha512((folder / name).read_bytes()).digest()).decode(), wanted
        )
    if not (folder / WHEEL).is_file():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "deepforest==2.1.0"], cwd=folder, check=True)
    _compare(folder / WHEEL, hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest(), WHEEL_SHA256)


def _compare(file: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise ValueError(f"{file}: its hash is {found}, not {wanted}: remove it to have it downloaded again")


def write_emoji(packages: Path, out: Path) -> None:
    """Write the pictures of all vendors into class folders of train/ and val/, and into unlabelled/."""
    with tarfile.open(packages / next(iter(NPM.values()))[0]) as archive:
        rows = json.load(archive.extractfile("package/emoji.json"))  # type: ignore[arg-type]
    sizes = Counter(row["subcategory"] for row in rows if row["category"] in GROUPS)
    folders = {}
    for row in rows:
        code, name = row["image"].removesuffix(".png"), row["subcategory"].replace(" & ", "-and-")
        tested = int(hashlib.sha256(code.encode()).hexdigest(), 16) % TESTED == 0
        labelled = row["category"] in GROUPS and sizes[row["subcategory"]] >= LEAST
        folders[code] = f"{'val' if tested else 'train'}/{name}" if labelled else "unlabelled"
    for package, (file, _, inside) in NPM.items():
        vendor = package.partition("@1")[0].rpartition("-")[2].replace("3d", "microsoft")
        with tarfile.open(packages / file) as archive:
            for member in archive:
                path = Path(member.name)
                if member.isfile() and str(path.parent) == inside and (folder := folders.get(path.stem)):
                    target = out / folder / f"{vendor}-{path.name}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.extractfile(member) as source, target.open("wb") as copy:  # type: ignore[union-attr]
                        shutil.copyfileobj(source, copy)


def write_trees(packages: Path, out: Path) -> None:
    """Cut two aerial photographs into tiles, one for training and one for the test, with the boxes of their trees."""
    with zipfile.ZipFile(packages / WHEEL) as wheel:
        for split, name in PHOTOGRAPHS.items():
            photograph = Path(wheel.extract(f"deepforest/data/{name}.png", out / "whole"))
            root = ET.fromstring(wheel.read(f"deepforest/data/{name}.xml"))
            boxes = [[int(float(box.findtext(side, ""))) for side in ("xmin", "ymin", "xmax", "ymax")]
                     for box in root.iter("bndbox")]  # fmt: skip
            content = _tiles(photograph, boxes, out / "images", split)
            (out / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.rmtree(out / "whole")


def _tiles(photograph: Path, boxes: list[list[int]], folder: Path, split: str) -> dict[str, Any]:
    """Write the tiles of a photograph; return their boxes, cut at the tile's border, in COCO's format."""
    pixels, images, rows = decode(photograph), list[dict[str, Any]](), list[dict[str, Any]]()
    folder.mkdir(parents=True, exist_ok=True)
    for top in range(0, pixels.shape[0] - TILE + 1, TILE):
        for left in range(0, pixels.shape[1] - TILE + 1, TILE):
            image = {"id": len(images) + 1, "file_name": f"{split}_{top}_{left}.png", "width": TILE, "height": TILE}
            save_png(pixels[top : top + TILE, left : left + TILE], folder / image["file_name"])
            images.append(image)
            for x1, y1, x2, y2 in boxes:
                x, y, right, bottom = max(x1, left), max(y1, top), min(x2, left + TILE), min(y2, top + TILE)
                width, height = right - x, bottom - y
                if min(width, height) > 0 and width * height >= VISIBLE * (x2 - x1) * (y2 - y1):
                    row = {"image_id": image["id"], "category_id": 1, "iscrowd": 0, "area": width * height}
                    rows.append(row | {"id": len(rows) + 1, "bbox": [x - left, y - top, width, height]})
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "tree"}]}


def main() -> int:
    """Build the data sets; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/real"), help="folder to write")
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), help="folder of the downloads, 170 MB")
    options = parser.parse_args()
    fetch(options.packages)
    for name, write in (("emoji", write_emoji), ("trees", write_trees)):
        if not (options.out / name).exists():
            write(options.packages.absolute(), options.out / name)
        print(options.out / name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
