"""Records of users: rows by name, a table per data set, verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from results.frame import frame, load
from results.own import data_sets, measured
from results.record import Record, write
from results.tables import main
from tests.results.conftest import record

OWN = {"git_commit": "0" * 40, "device": "cpu", "data": "pets", "data_identity": "0123456789ab"}


def foreign(name: str, accuracy: float, seed: int = 0, task: str = "linear", **more: object) -> Record:
    """Return a record of a file that says nothing of itself, on a user's data set."""
    facts = {"path": f"/models/{name}.pth", "format": "torchvision"}
    one = record(None, None, {"top1": accuracy}, task, environment=OWN | more, seed=seed, **facts)
    return replace(one, backbone_id=f"sha256-{name}")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two files with three seeds each, values per test image, and random weights."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "records"
    for name, accuracy in (("dino", 0.9), ("mine", 0.5)):
        for seed in range(3):
            right = rng.random(200) < accuracy
            one = replace(foreign(name, float(right.mean()), seed), per_image=f"{seed}.npz")
            path = write(folder, one)
            np.savez(path.with_name(f"{seed}.npz"), top1=right)
    return folder


def test_files_are_rows_of_their_own_in_a_table_of_the_data_set(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--records", str(records), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    table = (tmp_path / "out" / "data-pets.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ") and ":--" not in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| pre-training",
        "| dino.pth (torchvision layout)",
        "| mine.pth (torchvision layout)",
    ]
    assert "dino.pth (torchvision layout) beats mine.pth (torchvision layout) by" in said
    assert "paired bootstrap over 200 test images" in said
    assert "3 seeds each" in said
    assert (tmp_path / "out" / "verdicts.md").read_text().strip() in said
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        page.index("which checkpoints differ")
        < page.index("dino.pth (torchvision layout) beats")
        < page.index("<table")
    )
    assert not (tmp_path / "out" / "classification.md").exists(), "no column among those of the project's tasks"


def test_single_files_are_read_and_labels_name_rows(records: Path, tmp_path: Path) -> None:
    paths = sorted(records.rglob("*.json"))[:3]
    third = foreign("third", 0.1, task="finetune")
    write(tmp_path / "more", third)
    labelled = replace(foreign("third", 0.7), backbone=foreign("third", 0.7).backbone | {"label": "my best"})
    alone = write(tmp_path / "more", labelled)
    rows = frame(load([*paths, alone]))
    assert {*rows["title"]} == {"dino.pth (torchvision layout)", "my best"}
    assert len(rows) == 4
    assert {*frame(load([tmp_path / "more"]))["title"]} == {"my best"}, "of any of its records"
    (group,) = data_sets(rows).values()
    one = {each.name: each for each in measured(group)}["dino.pth (torchvision layout)"]
    assert one.per_image is not None
    assert one.per_image.shape == (200,)
    with pytest.raises(ValueError, match="does not exist"):
        load([tmp_path / "nowhere"])


def test_data_sets_of_one_name_are_two_tables(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    write(folder, foreign("dino", 0.9))
    write(folder, foreign("dino", 0.3, task="knn", data_identity="ffff456789ab"))
    assert [*data_sets(frame(load([folder])))] == ["pets [01234567]", "pets [ffff4567]"]


def test_records_of_the_project_have_no_data_set_of_a_user(tmp_path: Path) -> None:
    write(tmp_path, record("unimoco", 0, {"top1": 0.5}))
    assert data_sets(frame(load([tmp_path]))) == {}
