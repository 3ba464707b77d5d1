"""Records with odd texts and broken files: tables stay tables, and a line names the file."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results import record as records
from results.grid import Grid
from results.record import Record, read, slug
from results.study import is_stale
from results.study_file import Job
from results.tables import main
from tests.results.conftest import record, write_all

ODD = {
    "a column": "a | b",
    "HTML": "<script>alert(1)</script> & <!-- table:summary end -->",
    "LaTeX": r"\input{/etc/passwd} $x_1^2$ 5% #1 ~ {",
    "Markdown": "**b** `c` [d](http://e) _f_",
    "control characters": "a\nb\rc\td\x1b[31me\x00f\u202eg",
    "a formula": '=HYPERLINK("http://e","f")',
    "an argument of the row before": "[5pt] a",
    "a long text": "long " * 5000,
    "not ASCII": "größe – 中文 ✓",
}
MARKS = [
    pytest.param(text, id=name, marks=pytest.mark.fault("surroundings", "tables", f"{name} in the name of a method"))
    for name, text in ODD.items()
]


def made(tmp_path: Path, *found: Record) -> Path:
    """Make the tables of some records; return their folder."""
    write_all(tmp_path / "records", found)
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("text", MARKS)
def test_tables_of_a_method_with_an_odd_name(text: str, tmp_path: Path) -> None:
    """Three methods and two tasks are three rows and two columns in every format, whatever they are called."""
    methods = [text, "unimoco", "other"]
    found = [record(m, 0, {"top1": 0.5}, f"mine{i}", title=f"{text} {i}") for m in methods for i in (0, 1)]
    out = made(tmp_path, *found)
    lines = (out / "task-mine0.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {3}
    assert not re.search(r"<(?!!-- nothing)", "".join(table))
    page = (out / "index.html").read_text()
    assert "<script>alert" not in page
    assert page.count('<section id="task-mine0">') == 1
    rows = list(csv.DictReader(io.StringIO((out / "task-mine0.csv").read_text(), newline="")))
    assert len(rows) == 3
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@", "-", "\t", "\r"))]
    assert max(len(cell) for row in rows for name, cell in row.items() if name != "backbone_id") < 500
    assert not [cell for row in rows for cell in row.values() if not cell.isprintable()]


def test_markdown_shows_the_signs_of_a_name() -> None:
    """Read by the rules of GitHub's Markdown: a backslash before a sign is left out, an entity is its sign."""
    for text in ODD.values():
        shown = Grid("a", "a", [text], []).markdown().splitlines()[0][2:-2]
        read_back = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown.replace("&lt;", "<").replace("&#124;", "|"))
        assert read_back == Grid("a", "a", [text], []).header[0]


@pytest.mark.fault("surroundings", "tables", "odd names, set by LaTeX")
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_sets_odd_names(tmp_path: Path) -> None:
    texts = [text for name, text in ODD.items() if name not in ("not ASCII", "a long text")]
    tables = Grid("a", "a", ["method", *texts[:2]], [[text, "1", "2"] for text in texts], notes=texts).latex()
    packages = "".join(rf"\usepackage{{{name}}}" for name in ("booktabs", "graphicx", "longtable"))
    (tmp_path / "a.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{tables}\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return a change of a record's file that leaves its hash right."""

    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


BROKEN = {
    "half a file": lambda path: path.write_bytes(path.read_bytes()[:99]),
    "an empty file": lambda path: path.write_bytes(b""),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\xff" * 9),
    "brackets without an end": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "another schema": edit(lambda content: content.update(version=2)),
    "a field is missing": edit(lambda content: content.pop("metrics")),
    "a metric is NaN": edit(lambda content: content["metrics"].update(top1=float("nan"))),
    "a metric is a text": edit(lambda content: content["metrics"].update(top1="0.5")),
    "a metric above 1": edit(lambda content: content["metrics"].update(top1=50.0)),
    "a label ratio in words": edit(lambda content: content["backbone"].update(label_ratio="a tenth")),
    "epochs in words": edit(lambda content: content["backbone"].update(epochs="many")),
    "a label seed in words": edit(lambda content: content["backbone"].update(label_seed="first")),
    "values per image in another folder": edit(lambda content: content.update(per_image="../../a.npz")),
    "a copy of another record": lambda path: shutil.copy(path, path.with_name("copy.json")),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.fault("figures that mean nothing", "tables", f"a record: {name}"))
        for name in BROKEN
    ],
)
def test_a_broken_record_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(tmp_path / "records", [record("unimoco", 0, {"top1": 0.5}, label_ratio=0.1)])
    (path,) = (tmp_path / "records").rglob("*.json")
    BROKEN[name](path)
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 2
    _, err = capsys.readouterr()
    assert re.fullmatch(rf"tables: error: {path.parent}/(copy|{path.stem})\.json: .{{1,200}}\n", err)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("figures that mean nothing", "tables", "values per image that are half a file")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04."])
def test_broken_values_per_image_are_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [record(m, 0, {"top1": 0.5}, per_image="values.npz") for m in ("random", "unimoco")]
    write_all(tmp_path / "records", found)
    for one in found:
        file = (tmp_path / "records" / one.path).with_name("values.npz")
        np.savez_compressed(file, top1=np.arange(5.0))
    file.write_bytes(content)
    assert main(["--records", str(tmp_path / "records"), "--out", str(tmp_path / "out")]) == 2
    assert re.fullmatch(rf"tables: error: {file}: not the values of a record: .+\n", capsys.readouterr().err)


@pytest.mark.fault("surroundings", "study", "half a receipt, left by a full disk")
@pytest.mark.parametrize("content", ['["records/a', "", "1", "[1]"])
def test_half_a_receipt_does_not_count(content: str, tmp_path: Path) -> None:
    job = Job(**dict.fromkeys(Job.__dataclass_fields__, "") | {"receipt": str(tmp_path / "a.json"), "key": "knn"})
    (tmp_path / "a.json").write_text(content)
    assert is_stale(job)


@pytest.mark.fault("surroundings", "tables", "an identity that is longer than a file name may be")
@pytest.mark.parametrize("sign", ["a", "中"])
def test_a_long_identity_is_a_file_name(sign: str, tmp_path: Path) -> None:
    names = {slug(sign * length) for length in (10, 300, 301)}
    assert len(names) == 3
    assert max(len(name.encode()) for name in names) <= 160
    found = record("unimoco", 0, {"top1": 0.5}, task=sign * 300)
    assert read(records.write(tmp_path, found)) == found
