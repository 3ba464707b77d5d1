"""What is not installed is named with the command that brings it, in a checkout and beside an installed wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from common import extras


def test_every_extra_is_one_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(extras.EXTRAS.values()) == {*project["optional-dependencies"]} - {"all", "dev"}


def test_in_a_checkout_the_set_up_brings_it() -> None:
    with pytest.raises(ValueError, match=r"^absent is not installed: bash setup.sh installs it$"):
        extras.require("absent")
    with pytest.raises(ValueError, match=r"^absent is not installed: pip install it installs it$"):
        extras.require("absent", "pip install it")
    extras.require("torch")


def test_beside_a_wheel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "common" / "extras.py"))
    assert extras.how_to_install("mmcv") == "pip install 'unimoco-suite[mmseg]' installs it"
    assert extras.how_to_install("detectron2").endswith("[detectron2]' and then unimoco-install-detectron2 installs it")
