"""Packages beyond the core, which an installation may lack, and the command that brings each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Package as it is imported -> extra of pyproject.toml.
EXTRAS = {"detectron2": "detectron2", "mmcv": "mmseg", "mmseg": "mmseg", "mmdet": "mmdet", "snakemake": "study"}
EXTRAS |= dict.fromkeys(("pycocotools", "faster_coco_eval"), "detectron2")


def how_to_install(package: str) -> str:
    """Return the end of a message: what installs a package, in a checkout or beside an installed wheel."""
    if (Path(__file__).parents[1] / "setup.sh").is_file() or package not in EXTRAS:
        return "bash setup.sh installs it"
    also = " and then unimoco-install-detectron2" * (package == "detectron2")
    return f"pip install 'unimoco-suite[{EXTRAS[package]}]'{also} installs it"


def require(package: str, command: str = "") -> None:
    """Raise a ValueError that names the command to install a package, by default its extra's, where it is missing."""
    if importlib.util.find_spec(package) is None:
        how = f"{command} installs it" if command else how_to_install(package)
        raise ValueError(f"{package} is not installed: {how}")
