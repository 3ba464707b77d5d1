"""Every layout into every framework and back to features; the table of it in the README."""

import json
from pathlib import Path

import pytest

from converters import roundtrip
from converters.samples import SAMPLES
from converters.targets import TARGETS

ROOT = Path(roundtrip.__file__).parents[1]
RECORD = ROOT / "results/converters.jsonl"


@pytest.mark.slow
def test_every_layout_reaches_every_framework_unchanged(tmp_path: Path) -> None:
    records = roundtrip.measure()
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert {(r["read"], r["written"], r["arch"]) for r in records} == {
        (name, target, arch) for name in SAMPLES for target in TARGETS for arch in roundtrip.ARCHS
    }
    for record in records:
        sample, arch = SAMPLES[record["read"]], record["arch"]
        if arch in sample.archs and TARGETS[record["written"]].builds(arch + sample.stem):
            assert record["max_abs_delta"] <= 1e-4, record
        else:
            assert record["max_abs_delta"] is None
    committed = [json.loads(line) for line in RECORD.read_text().splitlines()]
    cells = [{k: r[k] for k in ("read", "made_with", "written", "arch", "tensors")} for r in records]
    assert cells == [{k: r[k] for k in cells[0]} for r in committed], (
        "python -m converters.roundtrip writes the record anew"
    )
    assert all(
        (r["max_abs_delta"] is None) == (c["max_abs_delta"] is None) for r, c in zip(records, committed, strict=True)
    )


def test_the_readme_holds_the_table_of_the_record() -> None:
    readme = ROOT / "README.md"
    if not readme.exists() or roundtrip.BEGIN not in readme.read_text():
        pytest.skip("the README has no place for the table yet")
    assert roundtrip.main(["--out", str(RECORD), "--readme", str(readme), "--check"]) == 0


def test_the_table_is_put_between_its_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme, args = tmp_path / "README.md", ["--out", str(RECORD), "--readme", str(tmp_path / "README.md"), "--check"]
    readme.write_text("# Title\n")
    assert roundtrip.main(args) == 2
    assert "needs <!-- converters:begin --> and <!-- converters:end -->, once each" in capsys.readouterr().err
    readme.write_text(f"before\n{roundtrip.BEGIN}\nold\n{roundtrip.END}\nafter\n")
    assert roundtrip.main(args) == 1
    assert "does not hold the table of" in capsys.readouterr().err
    assert roundtrip.main([*args[:-1], "--table"]) == 0
    assert roundtrip.main(args) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| MoCo v1 " in text


def test_a_worker_that_fails_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"half of the round trip failed: (.|\n)*'no such row'"):
        roundtrip.measure(["resnet18"], ["no such row"])
