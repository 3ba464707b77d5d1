"""Cut-out images of objects in class folders: with an alpha channel, or on a plain background, which is removed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from common.files import short_hash
from common.folders import escaped, some, tell
from common.images import UNLABELLED, CorruptImageError, ImageSet, load_images
from common.labels import choose_balanced
from transfer.own_data.layouts import SPLITS

SOLID = 128  # least alpha, of 255, of an object's pixel
TOLERANCE = 24  # of 255: how far a pixel of a plain background may be from its colour, in each channel
PLAIN = 0.9  # least fraction of an image's border that has the background's colour
LEAST = 16  # pixels of an object
MOST_CLASSES = 254  # a semantic mask is uint8; 0 is the background, 255 is ignored


def load_cutouts(folder: Path, val_fraction: float, seed: int) -> tuple[dict[str, ImageSet], str]:
    """Return the cut-outs of train and val, of one class map, and a hash of their names and content.

    Of files with the same content the first is kept, so that no object is in both parts.

    Args:
        folder: holds class folders, or train/ and val/ with class folders.
        val_fraction: of each class, for val, where there is no train/ and val/.
        seed: of that choice.

    Returns:
        Sets whose `read` returns (H, W, 4) uint8 RGBA, cropped to the object; and 12 hexadecimal digits.

    Raises:
        ValueError: there are no class folders, too few images, or one that holds no object; or train/ and val/ share
            a file.
    """
    if not folder.is_dir():
        raise ValueError(f"--from {folder}: {folder.absolute()}: no such folder")
    parts = [next((folder / n for n in names if (folder / n).is_dir()), None) for names in SPLITS.values()]
    if parts[0] and not parts[1]:
        raise ValueError(f"--from {folder}: {parts[0]} has no val/ beside it; name {parts[0]} to have it split")
    found = [str(part) for part in parts if part] if all(parts) else [str(folder)]
    images = load_images(found, complete=True)
    _check_classes(images, folder)
    from common.scan import scan_files  # here: torch takes a second, and scenes.py --help does without

    inspected = scan_files([path for path in images.paths if path is not None], inspect_cutout, "cut-outs")
    hashes = [digest for digest, _ in inspected]
    if full := sum(rectangle for _, rectangle in inspected):
        tell(f"{escaped(str(folder))}: {full} of {len(images)} cut-outs are whole rectangles")
    first = dict(zip(reversed(hashes), reversed(range(len(images))), strict=True))
    for i, digest in enumerate(hashes):
        if images.labels[i] != images.labels[first[digest]]:
            raise ValueError(f"{images.paths[i]}: the same file as {images.paths[first[digest]]}, of another class")
    identity = hashlib.sha256("\0".join([*images.names, *hashes]).encode()).hexdigest()[:12]
    if len(found) == 2:
        count = len(load_images(found[:1]))
        train, val = np.arange(count), np.arange(count, len(images))
        if shared := [i for i in val.tolist() if first[hashes[i]] < count]:
            one, other = images.paths[shared[0]], images.paths[first[hashes[shared[0]]]]
            raise ValueError(f"{one}: the same file as {other} ({len(shared)} in both parts): remove one of them")
    else:
        kept = images.subset(np.array(sorted(first.values())))
        if copies := len(images) - len(kept):
            tell(f"{escaped(str(folder))}: {copies} copies of other cut-outs are left out")
        held = choose_balanced(kept.labels, val_fraction, seed) if 0 < val_fraction < 1 else np.arange(0)
        if not 0 < len(held) < len(kept):
            raise ValueError(f"--val-fraction {val_fraction:g}: of {len(kept)} cut-outs, {len(held)} would be in val")
        images, train, val = kept, np.setdiff1d(np.arange(len(kept)), held), held
    if lacking := set(range(len(images.classes))) - set(images.labels[train].tolist()):
        raise ValueError(f"--from {folder}: no cut-out for train of class {images.classes[min(lacking)]!r}")
    images = replace(images, read=partial(_read, images))
    return {"train": images.subset(train), "val": images.subset(val)}, identity


def _read(images: ImageSet, index: int) -> np.ndarray:
    path = images.paths[index]
    assert path is not None  # they come from folders
    return read_cutout(path)


def _check_classes(images: ImageSet, folder: Path) -> None:
    if (images.labels == UNLABELLED).any():
        raise ValueError(f"--from {folder}: images without class folders: put those of each class into one of its name")
    if len(images.classes) > MOST_CLASSES:
        raise ValueError(f"--from {folder}: {len(images.classes)} classes ({some(images.classes)}): at most 254")


def inspect_cutout(path: Path) -> tuple[str, bool]:
    """Return a hash of a file's content and whether the object is a rectangle; raise as `read_cutout` does."""
    return short_hash(path.read_bytes()), bool((read_cutout(path)[:, :, 3] >= SOLID).all())


def read_cutout(path: Path) -> np.ndarray:
    """Return an object as (H, W, 4) uint8 RGBA, cropped to it.

    Where no pixel is transparent, a plain background is removed: what is of the border's colour and connected with the
    border. Holes inside of the object stay. An object in an image with an alpha channel may also fill the image.

    Raises:
        CorruptImageError: the file cannot be read.
        ValueError: it has neither an alpha channel nor a plain background, or no object.
    """
    name = escaped(str(path))
    try:
        with PIL.Image.open(path) as image:
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            pixels = np.array(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise CorruptImageError(f"{name}: not an image that Pillow reads ({error})") from error
    if pixels[:, :, 3].min() >= SOLID:
        pixels[:, :, 3] = 255 * ~_background(pixels[:, :, :3], name, has_alpha)
    solid = (pixels[:, :, 3] >= SOLID).astype(np.uint8)
    if solid.sum() < LEAST:
        raise ValueError(f"{name}: no object: {solid.sum()} pixels are not background")
    left, top, width, height = cv2.boundingRect(solid)
    return pixels[top : top + height, left : left + width]


def _background(rgb: np.ndarray, name: str, optional: bool) -> np.ndarray:
    """Return which pixels of an (H, W, 3) image are its plain background, (H, W) bool; none where it is optional."""
    border = np.ones(rgb.shape[:2], bool)
    border[1:-1, 1:-1] = False
    colour = np.median(rgb[border], axis=0)
    near = (np.abs(rgb - colour) <= TOLERANCE).all(axis=2)
    if (plain := near[border].mean()) < PLAIN:
        if optional:
            return np.zeros_like(near)
        raise ValueError(
            f"{name}: no alpha channel, and {plain:.0%} of its border has one colour: a cut-out needs an alpha channel "
            f"or a plain background ({PLAIN:.0%})"
        )
    parts = cv2.connectedComponents(near.astype(np.uint8), connectivity=4)[1]
    return near & np.isin(parts, parts[border & near])


def resize_cutout(pixels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale an object's longer side to `side` pixels.

    Pillow averages colours weighted by alpha, in integers, so that a transparent pixel's colour does not count.

    Args:
        pixels: (H, W, 4) uint8 RGBA.
        side: in pixels.

    Returns:
        Colours (h, w, 3) uint8, and which pixels are the object's, (h, w) bool: at least one.
    """
    height, width = (max(1, round(length * side / max(pixels.shape[:2]))) for length in pixels.shape[:2])
    scaled = np.array(PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BILINEAR))
    alpha = scaled[:, :, 3]
    return scaled[:, :, :3], alpha >= min(SOLID, alpha.max())
