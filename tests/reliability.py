"""The `fault` marker, the outcomes of the tests that carry it, and docs/reliability.md, which is made from them.

    @pytest.mark.fault("disks", "knn", "the feature cache on a full disk")

A test may carry several marks. To make the page from a complete run of the tests:

    bash tests/run.sh --nightly --reliability runs/reliability.json
    python tests/reliability.py runs/reliability.json
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

KINDS = (
    "workers and signals", "disks", "walking folders", "segmentation figures", "detection figures",
    "third-party exceptions", "choice of weights", "figures that mean nothing", "surroundings", "converters",
    "hostile files", "a newcomer's mistakes",
)  # fmt: skip
COMMANDS = ("pretrain", "knn", "linear", "finetune", "svm", "detect", "segment", "convert", "study", "tables")
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BLOCK = re.compile(r"(?<=<!-- faults begin -->\n).*(?=<!-- faults end -->)", re.DOTALL)
COLLECTED = pytest.StashKey[dict[str, list["Fault"]]]()  # of every test of a run, by its id
PROPERTY = "faults"  # of a test's reports, which pytest-xdist carries from its workers
INSIDE = "inside"  # likewise: test id -> faults and outcome, of tests that it has run in another process


class Fault(NamedTuple):
    """What a `fault` marker says."""

    kind: str
    command: str
    tried: str


class Row(NamedTuple):
    """What the page says about a fault: which test function tries it, and how often with which outcome."""

    fault: Fault
    file: str
    function: str
    outcomes: Counter[str]


def faults(item: pytest.Item) -> list[Fault]:
    """Return the faults that a test tries.

    Raises:
        pytest.UsageError: a marker has an unknown kind or command, or says nothing.
    """
    found = []
    for mark in item.iter_markers("fault"):
        if mark.kwargs or len(mark.args) != 3 or not all(isinstance(text, str) and text.strip() for text in mark.args):
            raise pytest.UsageError(f"{item.nodeid}: fault{mark.args}: expected fault(kind, command, what was tried)")
        fault = Fault(*mark.args)
        for word, known in ((fault.kind, KINDS), (fault.command, COMMANDS)):
            if word not in known:
                raise pytest.UsageError(f"{item.nodeid}: fault: {word!r} is none of {', '.join(known)}")
        found.append(fault)
    return sorted(found)


class Outcomes:
    """Writes the faults and the outcome of every marked test of a run to a file.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: dict[str, tuple[list[Fault], str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of one phase of a test: a failure counts before a skip, a skip before a pass."""
        properties = dict(report.user_properties)
        self.tests |= {test: (tried, outcome) for test, (tried, outcome) in properties.get(INSIDE, {}).items()}
        tried = properties.get(PROPERTY)
        if tried:
            outcomes = ("passed", "skipped", "failed")
            before = self.tests.get(report.nodeid, (tried, "passed"))[1]
            self.tests[report.nodeid] = tried, max(before, report.outcome, key=outcomes.index)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.tests, indent=1), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="write the outcomes of tests marked as faults")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reliability") and not hasattr(config, "workerinput"):  # not in a worker of pytest-xdist
        config.pluginmanager.register(Outcomes(config.getoption("--reliability")))


@pytest.hookimpl(tryfirst=True)  # before -k and -m deselect tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the markers, and attach them to the tests' reports."""
    config.stash[COLLECTED] = {item.nodeid: faults(item) for item in items}
    for item in items:
        item.user_properties.append((PROPERTY, [tuple(fault) for fault in faults(item)]))


def rows(tests: dict[str, tuple[Iterable[Sequence[str]], str]]) -> list[Row]:
    """Return the rows of the page, in its order, from faults and outcome by test id."""
    counts: dict[tuple[Fault, str, str], Counter[str]] = defaultdict(Counter)
    for test, (tried, outcome) in tests.items():
        file, _, function = test.split("[")[0].partition("::")  # of a class: CLASS::test
        for fault in tried:
            counts[Fault(*fault), file, function][outcome] += 1
    order = {key: (KINDS.index(key[0].kind), COMMANDS.index(key[0].command), key[0].tried, *key[1:]) for key in counts}
    return [Row(*key, counts[key]) for key in sorted(counts, key=order.__getitem__)]


def cell(outcomes: Counter[str]) -> str:
    """Return e.g. "3 passed, 1 skipped", or a dash without any test."""
    shown = [f"{outcomes[name]} {name}" for name in ("passed", "skipped") if outcomes[name]]
    return ", ".join(shown + [f"**{outcomes['failed']} failed**"] * bool(outcomes["failed"])) or "–"


def line(cells: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(" ".join(text.split()).replace("|", r"\|") for text in cells) + " |\n"


def render(rows: Sequence[Row]) -> str:
    """Return the generated part of the page: tests by kind and command, then what they try."""
    sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in rows:
        sums[row.fault.kind, row.fault.command] += row.outcomes
    text = "\n" + line(["kind", *COMMANDS]) + line([":--"] * (1 + len(COMMANDS)))
    text += "".join(line([kind, *(cell(sums[kind, command]) for command in COMMANDS)]) for kind in KINDS)
    for kind in KINDS:
        own = [row for row in rows if row.fault.kind == kind]
        if own:
            text += f"\n## {kind[0].upper()}{kind[1:]}\n\n" + line(["command", "tried", "test", "outcome"])
            text += line([":--"] * 4)
        for (_, command, tried), file, function, outcomes in own:
            text += line([command, tried, f"[{function}](../{file})", cell(outcomes)])
    return f"{text}\n"


def of_page(text: str) -> set[tuple[str, ...]]:
    """Return (kind, command, tried, file, function) of each row of a page."""
    found, kind = set(), ""
    for shown in BLOCK.search(text)[0].splitlines():  # type: ignore[index]
        if shown.startswith("## "):
            kind = next(name for name in KINDS if name.lower() == shown[3:].lower())
        test = re.fullmatch(r"\| (\w+) \| (.+) \| \[(\w+)\]\(\.\./(\S+)\) \| .+ \|", shown)
        if test:
            found.add((kind, test[1], test[2].replace(r"\|", "|"), test[4], test[3]))
    return found


def main(arguments: Sequence[str]) -> None:
    """Fill the page from the file of a run."""
    tests = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda _: render(rows(tests)), page), encoding="utf-8")
    print(f"{PAGE}: {cell(Counter(outcome for _, outcome in tests.values()))}")


if __name__ == "__main__":
    main(sys.argv[1:])
