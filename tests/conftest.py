"""Fixtures shared by several folders of tests: real photos, image sets in memory. The longest files start first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from common import fashion_mnist, scan
from common.images import CorruptImageError, ImageSet
from common.transforms import Image

pytest_plugins = ["tests.reliability", "tests.profiles"]
LONGEST = (
    "segment", "detect", "studies", "train", "study", "slurm", "roundtrip", "linear", "openmmlab", "stops",
    "surroundings", "disks", "own_data", "own_masks", "frameworks", "writing", "names", "tables", "svm",
)  # fmt: skip


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; the tests' processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """Fetch Fashion-MNIST where it is missing."""
    fashion_mnist.fetch(DATA)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A stable sort: the order within a file stays."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of scans, kept in a folder of the test's own."""
    monkeypatch.setattr(scan, "CACHE", tmp_path / "checks")
    return tmp_path / "checks"


@pytest.fixture(scope="session")
def data_root() -> str:
    """Folder of Fashion-MNIST."""
    return str(DATA)


@pytest.fixture(scope="session", params=["china.jpg", "flower.jpg"])
def photo(request: pytest.FixtureRequest) -> Image:
    """A photo of 427 x 640 pixels."""
    return load_sample_image(request.param).copy()


@pytest.fixture(scope="session")
def china() -> Image:
    """One photo, where two would only take longer."""
    return load_sample_image("china.jpg").copy()


@pytest.fixture(scope="session")
def make_images(china: Image) -> Callable[..., ImageSet]:
    """Image sets in memory: image i is the photo's 48 x 64 pixels from row 5 * i, column 7 * i on."""

    def make(labels: Sequence[int] | np.ndarray, corrupt: Sequence[int] = (), classes: int = 3) -> ImageSet:
        def read(i: int) -> Image:
            if i in corrupt:
                raise CorruptImageError(f"image{i}.jpg: broken")
            top, left = 5 * i % 370, 7 * i % 570
            return china[top : top + 48, left : left + 64]

        names = [f"folder{i % 2}/image{i}.jpg" for i in range(len(labels))]
        return ImageSet(names, np.array(labels, dtype=np.int64), [f"class{c}" for c in range(classes)], read)

    return make
