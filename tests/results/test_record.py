"""Records: written by several processes at once, checked on reading."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path

import pytest

from results.record import Record, append, read

RECORD = Record(
    task="knn", protocol="p", checkpoint={"sha256": "0" * 64, "format": "timm", "arch": "resnet18"}, seed=0,
    metrics={"top1": 0.5}, cost={}, config={"k": [20]}, environment={},
)  # fmt: skip


def write_many(path: Path, writer: int) -> None:
    for number in range(200):
        append(path, dataclasses.replace(RECORD, seed=1000 * writer + number, protocol="x" * 3000))


def test_no_line_is_lost_or_torn_when_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, i)) for i in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert sorted(r.seed for r in read(path)) == sorted(1000 * i + n for i in range(4) for n in range(200))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    append(tmp_path / "new" / "r.jsonl", RECORD)
    assert read(tmp_path / "new" / "r.jsonl") == [RECORD]


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"task": "knn"', "Expecting"),
        *(
            (json.dumps(dataclasses.asdict(RECORD) | changed), reason)
            for changed, reason in (
                ({"metrics": {"top1": "0.5"}}, "top1='0.5'"),
                ({"metrics": {}}, "without metrics"),
                ({"metrics": [1]}, "must be of type dict"),
                ({"cost": {"seconds": float("nan")}}, "finite"),
                ({"checkpoint": {"sha256": "a"}}, "format is missing"),
                ({"checkpoint": None}, "must be of type dict"),
                ({"environment": None}, "must be of type dict"),
                ({"seed": "0"}, "must be of type int"),
                ({"task": ["knn"]}, "must be of type str"),
                ({"extra": 1}, "extra"),
            )
        ),
        (json.dumps(dataclasses.asdict(RECORD)).replace("0.5", "NaN"), "finite"),
        ("[]", "a list, no record"),
    ],
)
def test_a_broken_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(path, RECORD)
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=f"r.jsonl:2: .*{reason}"):
        read(path)


def test_half_a_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(path, RECORD)
    with open(path, "a") as file:
        file.write('{"task": "kn')
    append(path, dataclasses.replace(RECORD, seed=1))
    with pytest.raises(ValueError, match=r"r.jsonl:2: "):
        read(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    assert [record.seed for record in read(path)] == [0, 1]


def test_other_options_are_another_measurement() -> None:
    assert RECORD.key == dataclasses.replace(RECORD, metrics={"top1": 0.1}).key
    assert RECORD.key != dataclasses.replace(RECORD, config={"k": [10]}).key
    assert RECORD.key != dataclasses.replace(RECORD, seed=1).key
