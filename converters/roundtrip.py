"""The proof of the converters, as a table: each layout that is read × each framework that is written for.

python -m converters.roundtrip --readme README.md           run every cell (two minutes), write record and table
python -m converters.roundtrip --readme README.md --table   run none: write the record's table
python -m converters.roundtrip --readme README.md --check   run none: is the README's table the record's?

Every cell makes a checkpoint of that layout, converts it, lets the framework build its own model and load the file,
and holds max |Δ| between the features of the model that made the checkpoint and of the one that loaded it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from tabulate import tabulate

from converters import sources, verify
from converters.backbone import Backbone
from converters.samples import ARCHS, SAMPLES, write
from converters.targets import TARGETS

BEGIN, END = "<!-- converters:begin -->", "<!-- converters:end -->"
# Who fills which columns: detectron2 and OpenMMLab never share a process.
_WORKERS = {"detectron2": ("detectron2", "torchvision", "timm"), "mmseg": ("openmmlab",)}
_SIZE = 64  # of the photograph: small, since every cell runs two networks
Row = dict[str, Any]


def measure(archs: Iterable[str] = ARCHS, rows: Iterable[str] = tuple(SAMPLES)) -> list[Row]:
    """Run every cell, in two processes beside each other; return one record per cell.

    Raises:
        RuntimeError: a worker failed; the message is its own.
    """
    with tempfile.TemporaryDirectory(prefix="roundtrip-") as folder:
        for act in ("make", "fill"):
            with ThreadPoolExecutor() as pool:
                jobs = [pool.submit(_worker, act, package, folder, archs, rows) for package in _WORKERS]
                outputs = [job.result() for job in jobs]
    records = [json.loads(line) for text in outputs for line in text.splitlines()]
    order = {name: place for place, name in enumerate(SAMPLES)}
    return sorted(records, key=lambda r: (order[r["read"]], list(TARGETS).index(r["written"]), r["arch"]))


def _worker(act: str, package: str, folder: str, archs: Iterable[str], rows: Iterable[str]) -> str:
    code = (
        "import sys, converters.roundtrip as r; r.work(*sys.argv[1:4], sys.argv[4].split('|'), sys.argv[5].split('|'))"
    )
    command = [sys.executable, "-c", code, act, package, folder, "|".join(archs), "|".join(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {package} half of the round trip failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def work(act: str, package: str, folder: str, archs: list[str], rows: list[str]) -> None:
    """Make the samples that need `package`, or fill its columns and print one JSON record per cell."""
    torch.set_num_threads(1)
    for arch in archs:
        for name in rows:
            if act == "make" and SAMPLES[name].package == package and arch in SAMPLES[name].archs:
                _make(name, arch, Path(folder))
            elif act == "fill":
                for record in _fill(name, arch, Path(folder), _WORKERS[package]):
                    print(json.dumps(record), flush=True)


def _paths(name: str, arch: str, folder: Path) -> tuple[Path, Path]:
    stem = f"{list(SAMPLES).index(name)}-{arch}"
    return folder / (stem + SAMPLES[name].suffix), folder / f"{stem}.features"


def _make(name: str, arch: str, folder: Path) -> dict[str, torch.Tensor]:
    path, features = _paths(name, arch, folder)
    run, stages = write(SAMPLES[name], arch, path)
    images = verify.normalised(verify.photograph(_SIZE))
    outputs = verify.stage_outputs(stages, lambda: run(images))
    if SAMPLES[name].package:  # for the other process
        torch.save(outputs, features)
    return outputs


def _fill(name: str, arch: str, folder: Path, targets: tuple[str, ...]) -> Iterator[Row]:
    sample = SAMPLES[name]
    if arch not in sample.archs:
        yield from (_row(name, arch, target) for target in targets)
        return
    shared = bool(sample.package)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        home = folder if shared else Path(own)
        path, features = _paths(name, arch, home)
        reference = torch.load(features, weights_only=True) if shared else _make(name, arch, home)
        backbone = sources.read_backbone(path, branch=sample.branch)
        for target in targets:
            yield _cell(name, arch, target, backbone, reference, Path(own))


def _row(name: str, arch: str, target: str, delta: float | None = None, tensors: int = 0) -> Row:
    row = {"read": name, "made_with": SAMPLES[name].made_with, "written": target, "arch": arch}
    return row | {"max_abs_delta": delta, "tensors": tensors}


def _cell(
    name: str, arch: str, target: str, backbone: Backbone, reference: dict[str, torch.Tensor], folder: Path
) -> Row:
    if not TARGETS[target].builds(backbone.arch):
        return _row(name, arch, target)
    path = folder / f"converted{TARGETS[target].suffixes[0]}"
    TARGETS[target].save(backbone, path)
    checks = verify.verify(backbone, target, path, verify.photograph(_SIZE), reference)
    delta = max(delta for check in checks for delta in check.deltas.values())
    return _row(name, arch, target, delta, max(check.tensors for check in checks))


def table(records: list[Row]) -> str:
    """Return the Markdown table: a row for each layout, a column for each framework, R18 / R50 in a cell."""
    cells = {(r["read"], r["written"], r["arch"]): r["max_abs_delta"] for r in records}
    made = {r["read"]: r["made_with"] for r in records}
    archs = sorted({r["arch"] for r in records})

    def cell(name: str, target: str) -> str:
        deltas = [cells[name, target, arch] for arch in archs]
        return " / ".join("–" if d is None else "0" if d == 0 else f"{d:.0e}" for d in deltas)

    rows = [[name, made[name], *(cell(name, target) for target in TARGETS)] for name in made]
    return str(tabulate(rows, headers=["read", "made with", *TARGETS], tablefmt="github"))


def put(readme: Path, text: str) -> str:
    """Return the text of `readme` with `text` between its markers; ValueError if they are not there."""
    whole = readme.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1:
        raise ValueError(f"{readme} needs {BEGIN} and {END}, once each")
    before, rest = whole.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(args: list[str] | None = None) -> int:
    """Run the command; return 0, 1 where --check finds a difference, 2 for a user's mistake."""
    parser = jsonargparse.ArgumentParser(prog="roundtrip", description=__doc__, exit_on_error=False)
    parser.add_argument("--out", type=str, default="results/converters.jsonl", help="the record, a line a cell")
    parser.add_argument("--readme", type=str, help="a Markdown file with the two markers to put the table between")
    parser.add_argument("--table", action="store_true", help="run nothing: put the record's table into the README")
    parser.add_argument("--check", action="store_true", help="run nothing: does the README hold the record's table?")
    try:
        options = parser.parse_args(args)
        out, readme = Path(options.out), Path(options.readme) if options.readme else None
        if not (options.check or options.table):
            out.write_text("".join(json.dumps(record) + "\n" for record in measure()), encoding="utf-8")
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        if readme:
            text = put(readme, table(records))
            if options.check and text != readme.read_text(encoding="utf-8"):
                print(f"roundtrip: {readme} does not hold the table of {out}; --table puts it there", file=sys.stderr)
                return 1
            readme.write_text(text, encoding="utf-8")
    except (ValueError, OSError, jsonargparse.ArgumentError) as error:
        print(f"roundtrip: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
