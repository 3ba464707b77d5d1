"""Data set trees: each missing part is named, with the tree and where to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer.layouts import LAYOUTS, require_data


def grow(root: Path, name: str) -> list[Path]:
    """Write files that satisfy a layout."""
    files = [root / part.replace("*", "x") for part in LAYOUTS[name].parts]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    return files


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_missing_part_is_named(name: str, tmp_path: Path) -> None:
    files = grow(tmp_path, name)
    require_data(name, tmp_path)
    for part, file in zip(LAYOUTS[name].parts, files, strict=True):
        file.unlink()
        assert LAYOUTS[name].missing(tmp_path) == [part]
        file.touch()  # an empty file is as good as none
        assert LAYOUTS[name].missing(tmp_path) == [part]
        file.write_text("content")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_message_names_the_tree_and_the_source(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks") as raised:
        require_data(name, tmp_path / "nowhere")
    message = str(raised.value)
    for needed in (str(tmp_path / "nowhere"), *LAYOUTS[name].parts, *LAYOUTS[name].patterns, "http", "--data-root"):
        assert needed in message
    assert "\n" not in message
