"""Records: what is written is read, a measurement has one file, and a broken file is named."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.record import Record, hash_config, read, read_all, write

RECORD = Record(
    backbone_id="unimoco-0123456789ab", pretrain_seed=0, task="knn", config={"k": [20]}, title="kNN", seed=0,
    backbone={"path": "last.pth", "sha256": "0" * 64, "format": "unimoco-suite", "arch": "resnet18"},
    metrics={"top1": 0.5}, headline="top1", cost={}, environment={},
)  # fmt: skip
SMALL_INTS = st.integers(0, 9)
TEXT = st.text(st.characters(exclude_characters=":"), min_size=1, max_size=30) | st.sampled_from(["..", ".", "/a"])
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v, max_size=3))


def changed(**fields: Any) -> Record:
    return dataclasses.replace(RECORD, **fields)


@st.composite
def records(draw: st.DrawFn) -> Record:
    facts = {"label_seed": draw(SMALL_INTS), "label_ratio": draw(st.sampled_from([0.0, 0.1, 1.0]))}
    return changed(
        backbone_id=draw(TEXT), task=draw(TEXT), title=draw(st.text()), seed=draw(SMALL_INTS),
        pretrain_seed=draw(st.none() | SMALL_INTS), backbone=RECORD.backbone | facts,
        config=draw(st.dictionaries(st.text(), VALUES, max_size=3)), metrics={"top1": draw(st.floats(0, 1))},
    )  # fmt: skip


@given(records())
def test_a_record_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, record: Record) -> None:
    folder = tmp_path_factory.mktemp("records")
    path = write(folder, record)
    assert path == folder / record.path
    assert read(path) == record
    assert read_all(folder) == [record]


@given(records(), records())
def test_the_path_follows_from_what_was_measured_alone(first: Record, second: Record) -> None:
    def identity(record: Record) -> tuple[object, ...]:
        labels = record.backbone["label_seed"] if record.backbone["label_ratio"] == 0.1 else 0
        labels = None if record.pretrain_seed is None else labels
        return record.backbone_id, record.pretrain_seed, labels, record.task, record.config_hash, record.seed

    assert (first.path == second.path) == (identity(first) == identity(second))
    assert first.path == dataclasses.replace(first, title="other words", metrics={"top1": 0.1}, cost={"s": 1}).path
    assert len(first.path.parts) == 3
    assert not any(part.startswith(".") for part in first.path.parts)


def test_file_names_are_readable() -> None:
    assert str(RECORD.path) == f"knn/unimoco-0123456789ab_s0/{hash_config({'k': [20]})}_seed0.json"
    library = changed(backbone_id="timm:resnet50.a1_in1k", pretrain_seed=None)
    assert library.path.parent.name == "timm-resnet50.a1_in1k"
    labels = changed(backbone=RECORD.backbone | {"label_ratio": 0.1, "label_seed": 3})
    assert labels.path.parent.name == "unimoco-0123456789ab_s0_labels3"


def test_a_repeated_measurement_replaces_its_record(tmp_path: Path) -> None:
    write(tmp_path, RECORD)
    again = changed(metrics={"top1": 0.6}, backbone=RECORD.backbone | {"sha256": "1" * 64})
    write(tmp_path, again)
    assert read_all(tmp_path) == [again]
    assert not RECORD.matches(again)  # another file of the same pre-training
    assert RECORD.matches(changed(metrics={"top1": 0.6}))


def test_the_order_of_options_plays_no_role() -> None:
    assert hash_config({"a": 1, "b": {"c": 2, "d": 3}}) == hash_config({"b": {"d": 3, "c": 2}, "a": 1})


def test_label_seeds_are_pretrainings_only_where_labels_are_chosen() -> None:
    def pretrainings(ratio: float | None) -> int:
        facts = [{"label_ratio": ratio, "label_seed": seed} for seed in (0, 1)]
        return len({changed(backbone=RECORD.backbone | one).pretraining for one in facts})

    assert [pretrainings(ratio) for ratio in (0.0, 0.1, 1.0, None)] == [1, 2, 1, 2]


def test_files_without_a_known_seed_are_pretrainings_of_their_own() -> None:
    assert changed(pretrain_seed=None).pretraining == "0" * 64


def rewrite(folder: Path, metric: float) -> None:
    for _ in range(25):
        write(folder, changed(metrics={"top1": metric}, title="x" * 3000))


def test_a_record_is_whole_at_any_time_while_processes_write_it(tmp_path: Path) -> None:
    rewrite(tmp_path, 0.0)
    writers = [multiprocessing.get_context("fork").Process(target=rewrite, args=(tmp_path, i / 4)) for i in range(4)]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):
        assert len(read_all(tmp_path)) == 1
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    assert [path.name for path in tmp_path.glob("*/*/*")] == [RECORD.path.name]  # no temporary file is left


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metrics": {"top1": "0.5"}}, "top1='0.5'"),
        ({"metrics": {}}, "headline='top1': not one of the metrics: none"),
        ({"metrics": [1]}, "must be of type dict"),
        ({"metrics": {"top1": float("nan")}}, "finite"),
        ({"headline": "top5"}, "headline='top5': not one of the metrics: top1"),
        ({"cost": {"seconds": float("inf")}}, "finite"),
        ({"backbone": {"sha256": "a"}}, "path is missing"),
        ({"backbone": None}, "must be of type dict"),
        ({"backbone_id": ""}, "backbone_id is missing"),
        ({"pretrain_seed": "0"}, "must be of type int"),
        ({"seed": True}, "must be of type int"),
        ({"task": ["knn"]}, "must be of type str"),
        ({"extra": 1}, "extra"),
        ({"config": {"k": [10]}}, "config_hash is .*: edited by hand"),
        ({"seed": 1}, "this is the record knn/.*_seed1.json"),
    ],
)
def test_a_broken_field_is_named_with_its_file(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=f"_seed0.json: .*{reason}"):
        read_all(tmp_path)


@pytest.mark.parametrize(("text", "reason"), [('{"task": "knn"', "Expecting"), ("[]", "a list"), ("", "Expecting")])
def test_a_file_that_holds_no_record_is_named(text: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, RECORD)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"_seed0.json: .*{reason}"):
        read_all(tmp_path)


def test_a_copy_of_a_record_is_not_counted_twice(tmp_path: Path) -> None:
    path = write(tmp_path, RECORD)
    path.with_name("copy.json").write_text(path.read_text())
    with pytest.raises(ValueError, match=r"copy\.json: this is the record knn/"):
        read_all(tmp_path)
