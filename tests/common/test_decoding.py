"""The decoder of images: the same pixels as PIL's, and broken files told from whole ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil

from common.images import CorruptImageError, decode
from common.transforms import Image
from tests.common.pictures import write


def gradient_alpha(photo: Image) -> Pil.Image:
    """The photo with a transparency that varies."""
    image = Pil.fromarray(photo)
    image.putalpha(Pil.fromarray(np.tile(np.linspace(0, 255, photo.shape[1]).astype(np.uint8), (photo.shape[0], 1))))
    return image


def oriented(photo: Image, path: Path, orientation: int) -> None:
    """Writes the photo with an EXIF orientation (6 = turn by 90 degrees to look at it)."""
    exif = Pil.Exif()
    exif[0x0112] = orientation
    Pil.fromarray(photo).save(path, exif=exif)


SAVE: dict[str, Callable[[Image, Path], object]] = {
    "rgb.png": lambda x, path: Pil.fromarray(x).save(path),
    "grey.png": lambda x, path: Pil.fromarray(x).convert("L").save(path),
    "bilevel.png": lambda x, path: Pil.fromarray(x).convert("1").save(path),
    "palette.png": lambda x, path: Pil.fromarray(x).convert("P").save(path),
    "palette_transparent.png": lambda x, path: Pil.fromarray(x).convert("P").save(path, transparency=3),
    "grey_alpha.png": lambda x, path: Pil.fromarray(x).convert("LA").save(path),
    "alpha.png": lambda x, path: gradient_alpha(x).save(path),
    "alpha.webp": lambda x, path: gradient_alpha(x).save(path),
    "16_bit_rgb.png": lambda x, path: cv2.imwrite(str(path), x.astype(np.uint16) * 257),
    "baseline.jpg": lambda x, path: Pil.fromarray(x).save(path, quality=90),
    "progressive.jpg": lambda x, path: Pil.fromarray(x).save(path, progressive=True),
    "grey.jpeg": lambda x, path: Pil.fromarray(x).convert("L").save(path),
    "rgb.bmp": lambda x, path: Pil.fromarray(x).save(path),
    "lzw.tiff": lambda x, path: Pil.fromarray(x).save(path, compression="tiff_lzw"),
    "rgb.ppm": lambda x, path: Pil.fromarray(x).save(path),
    "grey.pgm": lambda x, path: Pil.fromarray(x).convert("L").save(path),
}
SAVE |= {f"exif_{o}.jpg": lambda x, path, o=o: oriented(x, path, o) for o in range(1, 9)}
SAVE |= {"exif_6.png": SAVE["exif_6.jpg"], "exif_6.webp": SAVE["exif_6.jpg"], "exif_6.tif": SAVE["exif_6.jpg"]}


@pytest.mark.parametrize("name", SAVE)
def test_decodes_to_the_same_rgb_as_pil(china: Image, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    SAVE[name](china[:120, :161], path)
    image = decode(path)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(Pil.open(path).convert("RGB")))


def test_16_bit_grey_keeps_its_high_byte(china: Image, tmp_path: Path) -> None:
    # PIL clips 16-bit grey at 255 when it converts to RGB, so it is no reference here.
    grey = cv2.cvtColor(china[:120, :161], cv2.COLOR_RGB2GRAY)
    cv2.imwrite(str(tmp_path / "x.png"), grey.astype(np.uint16) * 256 + 77)
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), np.stack([grey] * 3, axis=-1))


def test_cmyk_jpeg_is_rgb_to_rounding(china: Image, tmp_path: Path) -> None:
    Pil.fromarray(china).convert("CMYK").save(tmp_path / "x.jpg")
    ours, theirs = decode(tmp_path / "x.jpg"), np.asarray(Pil.open(tmp_path / "x.jpg").convert("RGB"))
    # The two libraries round (255 - C) * (255 - K) / 255 to different sides.
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def jpeg(photo: Image, thumbnail: bool = False) -> bytes:
    """A JPEG file's bytes; with an EXIF segment that holds a whole small JPEG, as cameras write it."""
    out, small = io.BytesIO(), io.BytesIO()
    Pil.fromarray(photo).resize((160, 120)).save(small, "JPEG")
    exif = b"Exif\x00\x00MM\x00*" + small.getvalue()
    Pil.fromarray(photo).save(out, "JPEG", quality=95, exif=exif if thumbnail else b"")
    return out.getvalue()


@pytest.mark.parametrize("thumbnail", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_truncated_jpeg_is_corrupt_wherever_it_ends(
    china: Image, tmp_path: Path, share: float, thumbnail: bool
) -> None:
    data = jpeg(china, thumbnail)
    (tmp_path / "x.jpg").write_bytes(data[: min(int(share * len(data)), len(data) - 2)])
    with pytest.raises(CorruptImageError, match=r"x\.jpg: the JPEG ends early"):
        decode(tmp_path / "x.jpg")


def test_jpeg_cut_just_behind_its_thumbnail_is_corrupt(china: Image, tmp_path: Path) -> None:
    data = jpeg(china, thumbnail=True)
    (tmp_path / "x.jpg").write_bytes(data[: data.index(b"\xff\xd9") + 1500])
    with pytest.raises(CorruptImageError, match="ends early"):
        decode(tmp_path / "x.jpg")


def test_jpeg_whose_end_was_never_written_but_zeros_is_corrupt(china: Image, tmp_path: Path) -> None:
    data = jpeg(china)
    half = len(data) // 2
    (tmp_path / "x.jpg").write_bytes(data[:half] + bytes(len(data) - half))
    with pytest.raises(CorruptImageError, match="ends early"):
        decode(tmp_path / "x.jpg")


@pytest.mark.parametrize("tail", [b"\x00", bytes(100_000), b"ftypmp42\xff\xd8\xff\xe0" * 20_000])
def test_jpeg_followed_by_other_data_is_whole(china: Image, tmp_path: Path, tail: bytes) -> None:
    """Phones append video clips and padding."""
    for progressive in (False, True):
        Pil.fromarray(china).save(tmp_path / "x.jpg", progressive=progressive)
        whole = decode(tmp_path / "x.jpg")
        (tmp_path / "y.jpg").write_bytes((tmp_path / "x.jpg").read_bytes() + tail)
        np.testing.assert_array_equal(decode(tmp_path / "y.jpg"), whole)


def test_truncated_png_is_corrupt(tmp_path: Path) -> None:
    data = write(tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptImageError, match=r"x\.png: not an image"):
        decode(tmp_path / "x.png")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_header_that_claims_absurd_sizes_is_corrupt(tmp_path: Path) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"x")) + png_chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels)
    with pytest.raises(CorruptImageError, match=r"x\.png: .*pixels"):
        decode(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("data", "complaint"), [(b"", "empty file"), (b"<html>404</html>", "not an image"), (b"\xff\xd8", "ends early")]
)
def test_files_that_are_no_images_are_corrupt(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(CorruptImageError, match=rf"x\.jpg: .*{complaint}"):
        decode(tmp_path / "x.jpg")


def test_a_file_that_vanished_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError, match=r"gone\.jpg: No such file"):
        decode(tmp_path / "gone.jpg")
