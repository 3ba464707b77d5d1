"""The wheel holds every file that the commands read, and its commands are functions that exist."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Evidence of this repository, its scripts for a checkout, and what its pages are made from.
LEFT_OUT = ("results/records/", "results/tables/", "results/curves/", "results/pictures/", "results/benchmarks/")
SUFFIXES = (".sh", ".jsonl")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Made from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in [*tracked(), "pyproject.toml", "README.md", "LICENSE"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def tracked() -> list[str]:
    """Return the files of the packages that a wheel holds."""
    listed = ["git", "ls-files", "common", "pretrain", "converters", "transfer", "results"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return [n for n in names if not n.startswith(LEFT_OUT) and (not n.endswith(SUFFIXES) or "studies" in n)]


def test_it_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == set(tracked())


def test_its_commands_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for place in scripts.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_its_commands_read_their_files_from_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked, and run where nothing of the checkout is."""
    wheel.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site'); import common; from transfer.tasks import DETECTION, SEGMENTATION; "
        "from common.cli import config_names, find_config; from pretrain.config import RECIPES; "
        "from transfer.classification.options import RECIPES as PROTOCOLS; from results.study import STUDIES; "
        "from converters.formats import BY_NAME; from results import registry; "
        "print(common.__file__, *map(len, (DETECTION.names(), SEGMENTATION.names(), config_names(RECIPES), "
        "config_names(PROTOCOLS), config_names(STUDIES), BY_NAME)))"
    )
    command, around = [sys.executable, "-P", "-c", code], {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, text=True, check=True)
    place, *numbers = done.stdout.split()
    assert place.endswith("site/common/__init__.py")
    assert all(int(number) for number in numbers)
