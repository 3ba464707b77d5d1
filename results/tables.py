"""Tables from records: `python -m results.tables` writes those of the README between their markers.

    <!-- table:NAME begin --> ... <!-- table:NAME end -->

With --check nothing is written and a difference is an error: what stands in the README is what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from results.record import read

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "records"


def mean_std(values: pd.Series[float], scale: float = 100.0, digits: int = 1) -> str:
    """`mean ± sample standard deviation (n)`; without the spread where n = 1; "–" where there is nothing."""
    if not len(values):
        return "–"
    mean = f"{scale * values.mean():.{digits}f}"
    spread = f" ± {scale * values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{mean}{spread} ({len(values)})"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def label_ratio() -> str:
    """kNN on Fashion-MNIST test by share of labels in pre-training."""
    records = [r for r in read(RECORDS / "knn.jsonl") if r.config["queries"] == "fashion:test"]
    known = ("format", "label_ratio", "epochs")
    table = pd.DataFrame({name: r.checkpoint.get(name) for name in known} | r.metrics for r in records)
    ks = [name for name in table.columns if name.startswith("knn_top1_k")]
    groups = {"none: random initialisation": table[table["format"] == "random"]}
    for (ratio, epochs), group in table.dropna(subset=["label_ratio"]).groupby(["label_ratio", "epochs"]):
        groups[f"UniMoCo, {ratio:.0%} of the labels, {epochs:.3g} epochs"] = group
    rows = [[name, *(mean_std(group[k].dropna()) for k in ks)] for name, group in groups.items() if len(group)]
    header = ["pre-training", *(f"k = {name.removeprefix('knn_top1_k')}" for name in ks)]
    protocols = sorted({r.protocol for r in records})
    commits = sorted({str(r.checkpoint["git_commit"])[:8] for r in records if "git_commit" in r.checkpoint})
    return (
        f"{markdown(header, rows)}\n\nTop-1 in %, mean ± sample standard deviation over pre-training seeds (n). "
        f"Protocol: {'; '.join(protocols)}; bank: the 60,000 training images; 10,000 test images. "
        f"Trained at commit {', '.join(commits)}; records: results/records/knn.jsonl."
    )


def benchmarks() -> str:
    """Ratios of the newest benchmark record."""
    path = RECORDS / "benchmarks.jsonl"
    if not path.exists():
        return "No run on record."
    record = json.loads(path.read_text().splitlines()[-1])
    rows = [[name, f"{ratio:.2f}"] for name, ratio in record["ratios"].items()]
    precision = "bf16" if record["bf16"] else "fp32"
    return (
        f"{markdown(['ours / reference', 'ratio'], rows)}\n\nOne run, medians of {record['rounds']} rounds, "
        f"{record['threads']} CPU threads, {precision}, torch {record['versions']['torch']}, "
        f"commit {str(record['git_commit'])[:8]}."
    )


TABLES: dict[str, Callable[[], str]] = {"label-ratio": label_ratio, "benchmarks": benchmarks}


def fill(text: str, name: str, table: str) -> str:
    """Puts a table between its markers.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- table:{name} begin -->", f"<!-- table:{name} end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the README's tables; returns 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(prog="results/tables.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README differs")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    before = after = readme.read_text()
    for name, table in TABLES.items():
        after = fill(after, name, table())
    if options.check and after != before:
        print("README.md differs from the records; run: python -m results.tables", file=sys.stderr)
        return 1
    if after != before:
        readme.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
