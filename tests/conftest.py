"""Where tests run on several cores the files that take longest start first, so that all cores end together."""

from __future__ import annotations

import pytest

LONGEST = (
    "test_segment.py", "test_roundtrip.py", "test_detect.py", "test_train.py", "test_slurm.py", "test_study.py",
    "test_linear.py", "test_knn.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A stable sort: the order within a file stays."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
