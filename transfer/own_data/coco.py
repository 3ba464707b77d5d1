"""Read data sets in COCO's layout as tools export them, split them, and give their parts the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer.detection.coco_check import read_sections
from transfer.own_data.layouts import Content, Part, image_folder
from transfer.own_data.options import hold_out


@dataclass
class Annotated:
    """The annotations of a part of a data set.

    Attributes:
        content: in COCO's format.
        images: folder of the images.
        file: the user's file, where the content is that of the file; else None.
    """

    content: Content
    images: Path
    file: Path | None = None

    def names(self) -> list[str]:
        """Return the file names of the images, sorted."""
        return sorted(str(image.get("file_name")) for image in self.content["images"])

    def paths(self) -> list[Path]:
        """Return the files of the images, sorted by name."""
        return [self.images / name for name in self.names()]


def read(part: Part) -> Annotated:
    """Read a file; names of images are mended where Windows wrote them, or where only the last part of one is there.

    Raises:
        ValueError: the file is malformed.
    """
    content = read_sections(part.annotations)
    names = [str(image.get("file_name", "")) for image in content["images"]]
    if not names:
        raise ValueError(f"{part.annotations}: no images")
    tidy = [name.replace("\\", "/") for name in names]
    if not any((folder / tidy[0]).is_file() for folder in part.images):
        tidy = [name.rpartition("/")[2] for name in tidy]
    folder, file = image_folder(part.images, tidy[0]), part.annotations
    if tidy == names:
        return Annotated(content, folder, file)
    images = [image | {"file_name": name} for image, name in zip(content["images"], tidy, strict=True)]
    return Annotated(content | {"images": images}, folder)


def split(whole: Annotated, fraction: float, seed: int) -> tuple[Annotated, Annotated]:
    """Return training and test images, chosen at random by `hold_out`.

    Args:
        whole: of all images.
        fraction: of the images that are tested on.
        seed: of the choice.

    Raises:
        ValueError: one part would be empty.
    """
    shown: dict[object, set[str]] = {image.get("id"): set() for image in whole.content["images"]}
    for row in whole.content["annotations"]:
        if row.get("image_id") in shown and not row.get("iscrowd"):
            shown[row["image_id"]].add(str(row.get("category_id")))
    ids = {str(image.get("file_name")): image.get("id") for image in whole.content["images"]}
    held = hold_out(whole.names(), fraction, seed, [shown[ids[name]] for name in whole.names()])

    def part(tested: bool) -> Annotated:
        images = [image for image in whole.content["images"] if (str(image.get("file_name")) in held) == tested]
        kept = {image.get("id") for image in images}
        rows = [row for row in whole.content["annotations"] if row.get("image_id") in kept]
        return Annotated(whole.content | {"images": images, "annotations": rows}, whole.images)

    return part(tested=False), part(tested=True)


def drop_group(parts: Sequence[Annotated]) -> str:
    """Remove a category that only names the group of all others, as Roboflow writes one; return what was done.

    It has no objects, and the others name it as their supercategory.
    """
    for row in parts[0].content["categories"]:
        others = [other for other in parts[0].content["categories"] if other is not row]
        same = [[c for c in part.content["categories"] if c.get("name") == row.get("name")] for part in parts]
        used = any(
            a.get("category_id") in {c.get("id") for c in rows}
            for part, rows in zip(parts, same, strict=True)
            for a in part.content["annotations"]
        )
        if others and not used and all(other.get("supercategory") == row.get("name") for other in others):
            for part in parts:
                kept = [c for c in part.content["categories"] if c.get("name") != row.get("name")]
                part.content, part.file = part.content | {"categories": kept}, None
            return f"the category {row.get('name')!r} names the group of the others and has no objects: left out"
    return ""


def share_categories(train: Annotated, val: Annotated) -> str:
    """Give the test annotations the category ids of the training annotations; return what was done.

    Raises:
        ValueError: their categories have different names.
    """
    ours, theirs = (
        {str(row.get("name")): row.get("id") for row in part.content["categories"]} for part in (train, val)
    )
    if ours == theirs:
        return ""
    if ours.keys() != theirs.keys():
        alone = [f"{name!r} only in {where}" for names, others, where in (
            (ours, theirs, "train"), (theirs, ours, "val"),
        ) for name in names if name not in others]  # fmt: skip
        raise ValueError(f"training and test annotations have different categories: {', '.join(alone[:5])}")
    ids = {theirs[name]: ours[name] for name in ours}
    rows = [
        row | {"category_id": ids.get(row.get("category_id"), row.get("category_id"))}
        for row in val.content["annotations"]
    ]
    val.content = val.content | {"categories": train.content["categories"], "annotations": rows}
    val.file = None
    return "training and test annotations number the categories differently: the test ones are renumbered"
