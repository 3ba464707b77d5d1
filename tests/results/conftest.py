"""Records of a small made-up study."""

from __future__ import annotations

from typing import Any

import pytest

from results.record import Record


def record(method: str, seed: int, metrics: dict[str, float], task: str = "linear", **more: Any) -> Record:
    """A record of a pre-training whose label ratio and epochs are in `more`."""
    name = f"{method}{sorted(more.items())}{seed}"
    checkpoint = {"sha256": name, "format": "unimoco-suite", "arch": "resnet18", "method": method, "path": name, **more}
    return Record(
        task=task, protocol=f"{task}, some protocol", checkpoint=checkpoint, seed=seed, metrics=metrics,
        cost={"seconds": 60.0, "images": 600.0}, config={}, environment={"git_commit": "0" * 40, "device": "cpu"},
    )  # fmt: skip


@pytest.fixture
def study() -> list[Record]:
    """Two seeds of random weights and three label ratios; linear top-1 40, 50, 60 and 70 %, each ± 0.01."""
    records = []
    for seed, off in ((0, -0.0001), (1, 0.0001)):
        records.append(record("random", seed, {"top1": 0.4 + off}))
        records += [
            record("unimoco", seed, {"top1": 0.5 + 0.1 * i + off, "top5": 0.9}, label_ratio=ratio, epochs=4.0)
            for i, ratio in enumerate((0.0, 0.1, 1.0))
        ]
    return records
