"""The folder trees in which detectron2 and mmsegmentation expect public data sets, and where to get them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Layout:
    """The tree of a data set below --data-root.

    Attributes:
        patterns: of files, with {a,b} as in a shell; each must match at least one file that is not empty.
        source: where to get the data set.
    """

    patterns: list[str]
    source: str

    @property
    def parts(self) -> list[str]:
        """The patterns with their braces expanded."""
        words = ([word.split(",") for word in re.split("[{}]", pattern)] for pattern in self.patterns)
        return ["".join(chosen) for pattern in words for chosen in itertools.product(*pattern)]

    def missing(self, root: Path) -> list[str]:
        """Return the parts without a file below `root`."""
        return [part for part in self.parts if not any(p.is_file() and p.stat().st_size for p in root.glob(part))]


FILE = Path(__file__).parent / "configs" / "layouts.yaml"
LAYOUTS = {name: Layout(**entry) for name, entry in yaml.safe_load(FILE.read_bytes()).items()}


def require_data(name: str, root: Path) -> None:
    """Check that a data set is complete.

    Args:
        name: key of LAYOUTS.
        root: --data-root.

    Raises:
        ValueError: an unknown name; or names what is missing, the tree expected and where to get it.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no data set tree is named {name!r}: use {', '.join(LAYOUTS)}")
    layout = LAYOUTS[name]
    if missing := layout.missing(root):
        raise ValueError(
            f"{root.absolute()} lacks {', '.join(missing)}. Expected below it: {', '.join(layout.patterns)}. "
            f"Get it from {layout.source}, or name its folder with --data-root"
        )
