"""The `fault` marker, and docs/reliability.md against the tests that carry it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import reliability
from tests.reliability import PAGE, Fault, Row, of_page, render, rows

ROOT = Path(__file__).parents[1]
MARKED = """
import pytest
disk = pytest.mark.fault("disks", "knn", "a full | disk")
@disk
@pytest.mark.parametrize("i", [0, 1, 2])
def test_a(i):
    assert i
@disk
@pytest.mark.fault("converters", "convert", "a link")
def test_b():
    pytest.skip("no disk")
@pytest.fixture
def broken():
    yield
    raise OSError
@pytest.mark.fault("disks", "svm", "a broken disk")
def test_c(broken):
    pass
def test_d():
    pass
"""


def run(folder: Path, content: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a file of tests with the project's conftest, in two processes."""
    (folder / "test_it.py").write_text(content)
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.reliability"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *options, str(folder)], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def test_a_run_writes_the_outcomes_and_the_page_shows_them(tmp_path: Path) -> None:
    done = run(tmp_path, MARKED, "-n", "2", "--reliability", str(tmp_path / "out" / "file.json"))
    assert done.returncode == 1, done.stderr
    found = rows(json.loads((tmp_path / "out" / "file.json").read_text()))
    full = Fault("disks", "knn", "a full | disk")
    assert found == [
        Row(full, "test_it.py", "test_a", Counter(passed=2, failed=1)),
        Row(full, "test_it.py", "test_b", Counter(skipped=1)),
        Row(Fault("disks", "svm", "a broken disk"), "test_it.py", "test_c", Counter(failed=1)),
        Row(Fault("converters", "convert", "a link"), "test_it.py", "test_b", Counter(skipped=1)),
    ]
    text = f"<!-- faults begin -->\n{render(found)}<!-- faults end -->"
    assert of_page(text) == {(*row.fault, row.file, row.function) for row in found}
    assert "| disks | – | 2 passed, 1 skipped, **1 failed** | – | – | **1 failed** | – |" in text
    assert r"| knn | a full \| disk | [test_a](../test_it.py) | 2 passed, **1 failed** |" in text


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ('"disk", "knn", "it is full"', "'disk' is none of workers and signals, disks,"),
        ('"disks", "kNN", "it is full"', "'kNN' is none of pretrain, knn,"),
        ('"disks", "knn"', "expected fault(kind, command, what was tried)"),
        ('"disks", "knn", " "', "expected fault(kind, command, what was tried)"),
    ],
)
def test_a_marker_is_checked(mark: str, message: str) -> None:
    class Item:
        nodeid = "test_it.py::test_a"

        @staticmethod
        def iter_markers(_name: str) -> list[pytest.Mark]:
            return [eval(f"pytest.mark.fault({mark})").mark]

    with pytest.raises(pytest.UsageError) as error:
        reliability.faults(Item())  # type: ignore[arg-type]
    assert message in str(error.value)


def test_the_page_shows_the_tests_that_there_are(request: pytest.FixtureRequest) -> None:
    """Where a part of the tests is run, only these are compared."""
    if request.config.getoption("--reliability"):
        pytest.skip("this run is to make the page")
    tests = request.config.stash[reliability.COLLECTED]
    page = PAGE.read_text(encoding="utf-8")
    wanted = {
        (*row.fault, row.file, row.function) for row in rows({name: (marks, "") for name, marks in tests.items()})
    }
    shown, files = of_page(page), {name.split("::")[0] for name in tests}
    how = "run: bash tests/run.sh --reliability FILE; python tests/reliability.py FILE"
    assert not wanted - shown, how
    if not any("::" in argument for argument in request.config.args):
        assert not {row for row in shown - wanted if row[3] in files}, how
    assert " failed**" not in page
