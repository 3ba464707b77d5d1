"""The check of the data before the first run: when it is made, what the record says, how all processes stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from results.record import read_all
from tests.common.gloo import run_two
from transfer.benchmark import Measurement, Run, measure, read_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    backbone = read_checkpoint("random:resnet18", 0)
    return [Run(backbone, "toy", "a toy", seed, {"a": 1}, "top1", Path("out")) for seed in (0, 1)]


class Toy:
    """A benchmark that notes what is called.

    Args:
        to: folder of the records.
        wrong: what the check finds.
        options: changed.
    """

    def __init__(self, to: Path, wrong: Exception | None = None, **options: Any) -> None:
        self.calls: list[str] = []
        self.wrong = wrong
        switches = dict.fromkeys(("force", "dry_run", "check_data", "skip_check"), False)
        self.options = Namespace(records=to / "records", receipt=to / "receipt.json", **switches | options)

    def check(self, run: Run) -> str:
        self.calls.append(f"check {run.seed}")
        if self.wrong:
            raise self.wrong
        return "7 masks"

    def work(self, run: Run) -> Measurement:
        self.calls.append(f"work {run.seed}")
        return Measurement({"top1": 0.5}, {})

    def measure(self, runs: list[Run]) -> list[Any]:
        return measure(runs, self.work, self.options, CPU, self.check)


def test_the_data_are_checked_once_before_the_first_run_and_the_record_says_so(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Toy(tmp_path)
    records = toy.measure(runs)
    assert toy.calls == ["check 0", "work 0", "work 1"]
    assert [record.environment["data_check"] for record in records] == ["passed", "passed"]
    assert read_all(tmp_path / "records") == records
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("toy: data check passed in 0.0 s: 7 masks")


def test_nothing_is_checked_where_everything_is_on_record(runs: list[Run], tmp_path: Path) -> None:
    Toy(tmp_path).measure(runs[:1])
    toy = Toy(tmp_path)
    toy.measure(runs[:1])
    assert toy.calls == []
    toy.measure(runs)
    assert toy.calls == ["check 1", "work 1"]


def test_wrong_data_stop_the_command_before_anything_is_measured_or_written(runs: list[Run], tmp_path: Path) -> None:
    toy = Toy(tmp_path, ValueError("m.png: wrong"))
    with pytest.raises(ValueError, match=r"^m\.png: wrong$"):
        toy.measure(runs)
    assert toy.calls == ["check 0"]
    assert not list(tmp_path.iterdir())


def test_check_data_checks_and_stops(runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy(tmp_path, check_data=True)
    assert toy.measure(runs) == []
    assert toy.calls == ["check 0"]
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_check_data_checks_what_is_on_record(runs: list[Run], tmp_path: Path) -> None:
    Toy(tmp_path).measure(runs)
    toy = Toy(tmp_path, ValueError("m.png: wrong"), check_data=True)
    with pytest.raises(ValueError, match="wrong"):
        toy.measure(runs)


def test_skip_check_is_recorded(runs: list[Run], tmp_path: Path) -> None:
    toy = Toy(tmp_path, ValueError("m.png: wrong"), skip_check=True)
    toy.measure(runs)
    assert toy.calls == ["work 0", "work 1"]
    records = read_all(tmp_path / "records")
    assert [record.environment["data_check"] for record in records] == ["skipped", "skipped"]
    (checked,) = Toy(tmp_path / "checked").measure(runs[:1])
    assert checked.path == records[0].path, "whether data were checked is no part of the config"


def test_a_dry_run_checks_nothing(runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy(tmp_path, dry_run=True)
    toy.measure(runs)
    assert toy.calls == []
    assert [json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


def test_a_benchmark_without_a_check_cannot_be_written(runs: list[Run], tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    with pytest.raises(TypeError, match="check"):
        measure(runs, toy.work, toy.options, CPU)  # type: ignore[call-arg]


def test_options_that_contradict_each_other_are_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Toy(tmp_path, check_data=True, skip_check=True).measure(runs)


def fail_on_rank_0(kind: str) -> list[str]:
    """Return the exception that a process gets where the check on rank 0 fails, and the processes that checked."""
    from common.distributed import on_first_rank, rank

    kinds = {
        "value": ValueError("m.png: wrong"),
        "file": FileNotFoundError(2, "No such file", "m.png"),
        "key": KeyError(3),
    }
    checked = []

    def check() -> None:
        checked.append(str(rank()))
        raise kinds[kind]

    try:
        on_first_rank(check)
    except Exception as error:  # noqa: BLE001
        return [type(error).__name__, str(error), *checked]
    return ["nothing"]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("value", ["ValueError", "m.png: wrong"]),
        ("file", ["FileNotFoundError", "[Errno 2] No such file: 'm.png'"]),
        ("key", ["RuntimeError", "rank 0: KeyError: 3"]),
    ],
)
def test_all_processes_stop_with_the_same_line(kind: str, error: list[str]) -> None:
    assert run_two(fail_on_rank_0, kind, seconds=60) == [[*error, "0"], error]


def result_of_rank_0() -> str:
    from common.distributed import on_first_rank, rank

    return on_first_rank(lambda: f"of rank {rank()}")


@pytest.mark.ddp
def test_all_processes_get_the_result_of_the_first() -> None:
    assert run_two(result_of_rank_0, seconds=60) == ["of rank 0"] * 2
