"""Headers of images: size and orientation, without decoding the pixels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile

ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # last bytes of a whole file


def read_header(path: Path) -> list[int]:
    """Return the width and height of an image. Its pixels are decoded only where its last bytes are not an end.

    Raises:
        ValueError: the file is empty, or its EXIF orientation is not 1.
        OSError: it is missing, no image, or cut off.
    """
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError(f"{path}: an empty file (0 bytes), no image: copy it again, or remove it and its entry")
        with Image.open(path) as image:
            orientation = _orientation(image, file)
            if orientation not in (0, 1):
                raise ValueError(
                    f"{path}: its EXIF orientation {orientation} turns the image when it is read, and not its boxes "
                    "and masks: turn the pixels (mogrify -auto-orient FILE) where the annotations are for the turned "
                    "image, else remove the tag (exiftool -Orientation= FILE)"
                )
            end = ENDS.get(image.format or "", b"")
            file.seek(-len(end), 2)
            if not end or file.read() != end:
                image.load()
            return [*image.size]


def _orientation(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    if image.format != "PNG":
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    exif = Image.Exif()  # PIL would decode a PNG to find this chunk, which may follow the pixels
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif.load(file.read(length))
            break
        file.seek(length + 4, 1)
    return int(exif.get(ExifTags.Base.Orientation, 1))
