"""Names of files and classes that are not UTF-8, hold tabs and line ends, or are very long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.cli import printable
from common.files import text_lines
from common.folders import escaped
from common.images import load_images
from common.labels import LabelConfig, keep_labels
from tests.common.pictures import write

ODD = ("caf\udce9", "tab\there", "line\nbreak", "\u2028", "\x1b[31m", "back\\slash", "\u65e5\u672c", " x ")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """One class folder for each odd name, with two images of odd names."""
    for value, name in enumerate(ODD):
        path = write(tmp_path / "odd" / f"{value}" / "0.png", value)
        path.with_name("1.png").write_bytes(path.read_bytes())
        path.rename(path.with_name(f"{name}.png"))
        path.parent.rename(path.parent.with_name(name))
    return tmp_path / "odd"


def test_names_are_text_on_one_line_and_the_files_are_found(odd: Path) -> None:
    images = load_images([str(odd)])
    assert len(images) == 2 * len(ODD)
    for name in (*images.names, *images.classes):
        assert "\n" not in name
        assert "\t" not in name
        assert name.encode().decode() == name
    assert {int(images.read(i)[0, 0, 0]) for i in range(len(images))} == set(range(len(ODD)))
    assert "caf\\xe9/caf\\xe9.png" in images.names
    assert images.identity


def test_a_list_of_kept_labels_with_odd_names_is_read_back(odd: Path, tmp_path: Path) -> None:
    images = load_images([str(odd)])
    kept = keep_labels(images, LabelConfig(ratio=0.5))
    (tmp_path / "list.txt").write_text(kept.text)
    again = keep_labels(images, LabelConfig(list=str(tmp_path / "list.txt")))
    np.testing.assert_array_equal(kept.labels, again.labels)
    assert kept.sha256 == again.sha256


def test_lists_and_manifests_name_files_by_the_bytes_of_their_names(odd: Path, tmp_path: Path) -> None:
    names = [b"caf\xe9/caf\xe9.png", "\u2028/\u2028.png".encode(), "\u65e5\u672c/1.png".encode()]
    (tmp_path / "list.txt").write_bytes(b"\r\n".join(names))
    images = load_images([str(odd)])
    assert (keep_labels(images, LabelConfig(list=str(tmp_path / "list.txt"))).labels >= 0).sum() == 3
    (odd / "list.tsv").write_bytes(b"".join(name + b"\tcaf\xe9\n" for name in names))
    listed = load_images([str(odd / "list.tsv")])
    assert listed.classes == ["caf\\xe9"]
    assert [int(listed.read(i)[0, 0, 0]) for i in range(3)] == [0, 3, 6]


def test_very_long_names_and_paths_are_read(tmp_path: Path) -> None:
    folder = tmp_path / ("c" * 255)
    for _ in range(8):
        folder /= "d" * 255
    write(folder / ("x" * 251 + ".png"), 5)
    write(tmp_path / "dog/0.png")
    images = load_images([str(tmp_path)])
    assert images.classes == ["c" * 255, "dog"]
    assert images.read(0)[0, 0, 0] == 5


def test_printable_leaves_ordinary_names_alone() -> None:
    for name in ("n01440764", "two words", "\u00e9\u65e5\U0001f600", "a\u200db", "", "back\\slash"):
        assert escaped(name) == name


def test_the_screen_shows_names_as_lists_do() -> None:
    for name in (*ODD, "caf\udce9\n.png"):
        assert printable(name) == escaped(name)
    assert printable("a\u202eb") == "a\\u202eb"  # turns what follows around on a terminal
    assert escaped("a\u202eb") == "a\u202eb"


def test_lines_are_split_at_line_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffa\r\nb\u2028c\x0b\n\nd".encode())
    assert text_lines(tmp_path / "x.txt") == ["a", "b\u2028c\x0b", "", "d"]
    (tmp_path / "x.txt").write_bytes("a\tb\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"x\.txt: not a text file in UTF-8"):
        text_lines(tmp_path / "x.txt")
