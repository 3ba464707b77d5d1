"""A small data set for detection and segmentation: Fashion Scenes, or scenes of your own cut-out images.

python transfer/scenes.py --out data/my_scenes --train 2000 --val 500 --seed 0        garments of Fashion-MNIST
python transfer/scenes.py --from /data/tools --out data/tool_scenes --size 256        class folders of cut-outs

A scene shows 2 to 5 objects on textured noise, each scaled and mirrored, none hidden by more than 40 %. Garments are
tinted; scenes of `train` show garments of Fashion-MNIST's training set only, scenes of `val` those of its test set.
Cut-outs keep their colours. They have an alpha channel, or a plain background, which is removed. --from names class
folders, of which --val-fraction of each class are for `val`, or train/ and val/ with class folders.

    DIR/images/{train,val}/000000.png               RGB
    DIR/annotations/instances_{train,val}.json      COCO: boxes, masks and areas of the visible parts
    DIR/masks/{train,val}/000000.png                (H, W) uint8: 0 background, else index of the class + 1
    DIR/classes.txt                                 with --from: background and the classes, for segment.py
    DIR/scenes.json                                 parameters, and a hash of all pixels and annotations
    DIR/sheet.png                                   24 annotated examples

Masks are compressed RLE, not polygons: a sandal has holes, and an occluded garment may be in pieces. detectron2 and
pycocotools read both; with RLE detectron2 needs INPUT.MASK_FORMAT "bitmask".

Every scene has its own generator, seeded with (seed, split, index), and all arithmetic is on integers: pixels and
annotations are the same on every machine. The bytes of the PNG files depend on the version of Pillow; the hash, which
is of decoded pixels, does not.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from common.cli import CommandParser, run_cli
from common.folders import escaped
from common.images import ImageSet, load_images
from transfer.cutouts import load_cutouts, resize_cutout

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SPLITS = {"train": "fashion:train", "val": "fashion:test"}  # source of the garments of each split
FASHION = "Fashion Scenes, made from Fashion-MNIST (Xiao et al., arXiv 1708.07747)"
FORMAT_VERSION = 1  # increased when the same parameters give other scenes
GARMENTS = (2, 5)
VISIBLE = 0.6  # least visible fraction of a garment
TRIES = 30  # positions tried per garment
THRESHOLD = 24  # least gray value of a garment's pixel in Fashion-MNIST
PINHOLE = 8  # most pixels of a hole that is filled
SHOWN = 24  # scenes of the contact sheet
TAB10 = "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf"  # matplotlib's colours
PALETTE = np.array([[*bytes.fromhex(colour)] for colour in TAB10.split()], np.uint8)


@dataclass(frozen=True)
class Garment:
    """One object of a scene: a garment, or a cut-out.

    Attributes:
        label: index of its class.
        visible: (H, W) bool, its visible pixels.
        area: number of its pixels, occluded ones included.
    """

    label: int
    visible: np.ndarray
    area: int


@dataclass(frozen=True)
class Scene:
    """An image, (H, W, 3) uint8 RGB, and its garments from back to front."""

    image: np.ndarray
    garments: list[Garment]

    @property
    def semantic(self) -> np.ndarray:
        """Semantic mask, (H, W) uint8: 0 background, else class + 1."""
        mask = np.zeros(self.image.shape[:2], np.uint8)
        for garment in self.garments:
            mask[garment.visible] = garment.label + 1
        return mask


def make_scene(
    images: ImageSet, split: str, index: int, size: int, seed: int, classes: Sequence[str] = CLASSES
) -> Scene:
    """Compose one scene.

    Args:
        images: Fashion-MNIST's training or test set, or cut-outs in RGBA.
        split: "train" or "val"; part of the scene's seed.
        index: of the scene in its split.
        size: side in pixels.
        seed: of the data set.
        classes: in the order of the labels.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split), index))
    image = _background(rng, size)
    garments: list[Garment] = []
    for _ in range(int(rng.integers(GARMENTS[0], GARMENTS[1] + 1))):
        chosen = int(rng.integers(len(images)))
        tint = rng.integers(70, 256, 3)
        pixels, placed = images.read(chosen), False
        while not placed:
            for _ in range(TRIES):
                colours, mask = _place(pixels, tint, rng, size)
                if placed := all((g.visible & ~mask).sum() >= VISIBLE * g.area for g in garments):
                    break
            if len(garments) >= GARMENTS[0]:
                break  # enough garments
        if placed:
            garments = [Garment(g.label, g.visible & ~mask, g.area) for g in garments]
            label = classes.index(images.classes[int(images.labels[chosen])])
            garments.append(Garment(label, mask, int(mask.sum())))
            image[mask] = colours[mask]
    return Scene(image, garments)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return noise of three grain sizes around a random colour, (size, size, 3) uint8."""
    total = np.zeros((size, size, 3), np.int64)
    for cells, weight in ((3, 4), (12, 3), (48, 3)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += weight * cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.int64)
    colour = rng.integers(30, 226, 3)
    return ((6 * colour + 4 * total // 10) // 10).astype(np.uint8)


def _place(pixels: np.ndarray, tint: np.ndarray, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale, mirror and position an object, RGBA or a gray garment in RGB.

    Returns:
        Colours (size, size, 3) uint8, and which pixels are the object's, (size, size) bool.
    """
    side = int(rng.integers(size // 4, size // 2 + 1))
    if rng.integers(2):
        pixels = pixels[:, ::-1]
    scaled, solid = resize_cutout(pixels, side) if pixels.shape[2] == 4 else _garment(pixels[:, :, 0], tint, side)
    left, top, width, height = cv2.boundingRect(solid.astype(np.uint8))
    there = slice(top, top + height), slice(left, left + width)
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    here = slice(top, top + height), slice(left, left + width)
    colours, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool)
    colours[here], mask[here] = scaled[there], solid[there]
    return colours, mask


def _garment(gray: np.ndarray, tint: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and tint a (28, 28) uint8 garment; return colours (side, side, 3) and its pixels (side, side)."""
    scaled = cv2.resize(_fill_pinholes(gray), (side, side), interpolation=cv2.INTER_LINEAR_EXACT)
    colours = tint * (70 + 185 * scaled.astype(np.int64)[:, :, None] // 255) // 255
    return colours.astype(np.uint8), scaled >= THRESHOLD


def _fill_pinholes(pixels: np.ndarray) -> np.ndarray:
    """Raise dark prints of a few pixels, which belong to the garment, to the threshold; larger gaps stay open."""
    dark = (pixels < THRESHOLD).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    return np.where(dark & (stats[parts, cv2.CC_STAT_AREA] <= PINHOLE), np.uint8(THRESHOLD), pixels)


def coco(scenes: Iterable[Scene], classes: Sequence[str] = CLASSES, description: str = FASHION) -> dict[str, Any]:
    """Return a split's annotations in COCO's format (cocodataset.org/#format-data); boxes are x, y, width, height."""
    from pycocotools import mask as rle

    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, scene in enumerate(scenes):
        height, width = scene.image.shape[:2]
        images.append({"id": index, "file_name": _name(index), "height": height, "width": width})
        for garment in scene.garments:
            mask = np.asfortranarray(garment.visible, np.uint8)
            encoded = rle.encode(mask)
            annotations.append({
                "id": len(annotations) + 1,  # pycocotools takes 0 for "no match"
                "image_id": index, "category_id": garment.label + 1, "iscrowd": 0, "area": int(mask.sum()),
                "bbox": [*cv2.boundingRect(mask)],
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            })  # fmt: skip
    return {
        "info": {"description": description},
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
        "annotations": annotations,
    }


def _name(index: int) -> str:
    return f"{index:06d}.png"


def write_scenes(
    out: Path, train: int = 2000, val: int = 500, size: int = 128, seed: int = 0, fashion_root: str = "data",
    cutouts: Path | None = None, val_fraction: float = 0.2,
) -> Path:  # fmt: skip
    """Write the data set to a new folder, atomically, and return the folder.

    Args:
        out: folder to make; if it holds the same data set already, nothing is done.
        train: number of scenes of garments of Fashion-MNIST's training set, or of cut-outs for training.
        val: number of scenes of other garments or cut-outs.
        size: side of a scene in pixels.
        seed: data sets of different seeds share no scene.
        fashion_root: folder that holds FashionMNIST/raw.
        cutouts: folder of cut-outs in place of Fashion-MNIST; see `load_cutouts`.
        val_fraction: of the cut-outs of each class, for val.

    Raises:
        ValueError: a parameter out of range, no Fashion-MNIST, no cut-outs, or a folder that holds something else.
    """
    parameters: dict[str, Any] = {"train": train, "val": val, "size": size, "seed": seed, "version": FORMAT_VERSION}
    _check(parameters)
    sets, classes, description = dict[str, ImageSet](), list(CLASSES), FASHION
    if cutouts is not None:
        sets, parameters["cutouts"] = load_cutouts(cutouts, val_fraction, seed)
        parameters["val_fraction"] = val_fraction
        classes, description = sets["train"].classes, f"Scenes of the cut-outs in {escaped(cutouts.absolute().name)}"
    if _holds(out, parameters):
        return out
    from transfer.detection.pictures import contact_sheet  # here: torch takes a second, and --help does without

    sets = sets or {split: load_images([source], fashion_root) for split, source in SPLITS.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        part.chmod(0o755)
        hashes = {}
        for split, count in (("train", train), ("val", val)):
            indices = tqdm(range(count), f"{out.name} {split}", unit=" scenes", leave=False)
            scenes = (make_scene(sets[split], split, i, size, seed, classes) for i in indices)
            hashes[split], first = _write_split(part, split, scenes, classes, description)
            if split == "train":
                Image.fromarray(contact_sheet(first, classes)).save(part / "sheet.png")
        if cutouts is not None:
            (part / "classes.txt").write_text("\n".join(["background", *classes, ""]), encoding="utf-8")
        (part / "scenes.json").write_text(_json({"parameters": parameters, "sha256": hashes}), encoding="utf-8")
        try:
            part.rename(out)
        except OSError:  # another process was faster
            if not _holds(out, parameters):
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def ensure_scenes(root: Path = Path("data"), train: int = 2000, val: int = 500, size: int = 128, seed: int = 0) -> Path:
    """Return the folder of a data set below `root`, which also holds FashionMNIST/raw; make it if missing.

    Raises:
        ValueError: see `write_scenes`.
    """
    return write_scenes(root / "scenes" / f"{size}px-{train}-{val}-s{seed}", train, val, size, seed, str(root))


def _check(parameters: dict[str, Any]) -> None:
    for name, least, most in (("train", 1, 999_999), ("val", 1, 999_999), ("size", 32, 4096), ("seed", 0, 2**63)):
        if not least <= parameters[name] <= most:
            raise ValueError(f"{name}={parameters[name]}: must be between {least} and {most}")


def _holds(out: Path, parameters: dict[str, Any]) -> bool:
    """Return whether `out` is this data set; raise a ValueError if it is anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    file = out / "scenes.json"
    found = json.loads(file.read_bytes()).get("parameters") if file.is_file() else "something else"
    if found != parameters:
        raise ValueError(f"{out} holds {found}, not {parameters}: name another folder with --out or remove it")
    return True


def _write_split(
    root: Path, split: str, scenes: Iterable[Scene], classes: Sequence[str], description: str
) -> tuple[str, list[Scene]]:
    """Write images, masks and annotations; return the hash of their content, and the first scenes."""
    digest, first = hashlib.sha256(), list[Scene]()
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True)

    def written() -> Iterator[Scene]:
        for index, scene in enumerate(scenes):
            Image.fromarray(scene.image).save(root / "images" / split / _name(index))
            Image.fromarray(scene.semantic).save(root / "masks" / split / _name(index))
            digest.update(scene.image.tobytes() + scene.semantic.tobytes())
            first.extend([scene] * (index < SHOWN))
            yield scene

    text = _json(coco(written(), classes, description))
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    digest.update(text.encode())
    return digest.hexdigest(), first


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write a data set; return 0, or 2 for a user's mistake."""
    p = CommandParser("transfer/scenes.py", __doc__)
    p.add_argument("--from", type=Path, help="class folders of cut-out images, in place of Fashion-MNIST")
    p.add_argument("--val-fraction", type=float, default=0.2, help="of the cut-outs of each class, for val")
    p.add_argument("--out", type=Path, required=True, help="folder to make")
    p.add_argument("--train", type=int, default=2000, help="number of training scenes")
    p.add_argument("--val", type=int, default=500, help="number of test scenes, of other garments")
    p.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    p.add_argument("--seed", type=int, default=0, help="data sets of different seeds share no scene")
    p.add_argument("--fashion-root", default="data", help="folder that holds FashionMNIST/raw")

    def work() -> None:
        options = vars(p.parse(arguments))
        cutouts = options.pop("from")
        out = write_scenes(**options, cutouts=cutouts)
        print(f"{out}: {options['train']} + {options['val']} scenes; examples: {out / 'sheet.png'}")
        if cutouts is not None:
            print(f"next: python transfer/detect.py --ckpt CHECKPOINT --data {shlex.quote(str(out))}")

    return run_cli("scenes", work, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
