"""Round trips of the converters: every checkpoint format that is read × every framework that is written for.

    python tests/benchmarks/roundtrip.py [--out results/converters.jsonl]          two minutes on two cores

Each round trip makes a checkpoint of the format, converts it, lets the framework build its own model and load the
file, and compares the features of the model that made the checkpoint with those of the model that loaded it. The
output has one JSON object a line, from which results/tables.py fills the table in docs/converters.md:

    read           name of the sample, a key of tests/converters/samples.py:SAMPLES
    made_with      package whose own model made the checkpoint, or "key rules"
    written        framework, a key of converters/targets.py:TARGETS
    arch           "resnet18" or "resnet50"
    max_abs_delta  largest |difference| between the features; null where one of the two has no such network
    tensors        number of tensors compared
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from converters import Backbone, ReadOptions, read_backbone, verify
from converters.targets import TARGETS
from tests.converters.samples import ARCHS, SAMPLES, write

RESULTS = Path(__file__).parents[2] / "results/converters.jsonl"
# The targets that each process verifies: detectron2 and OpenMMLab never share one.
_WORKERS = {
    "detectron2": ("detectron2", "torchvision", "timm"),
    "mmseg": ("openmmlab", *(("mmdet",) if verify.installed("mmdet") else ())),
}
_SIZE = 64  # pixels of the photograph: small, since every round trip runs two networks
Row = dict[str, Any]


def measure(archs: Iterable[str] = ARCHS, samples: Iterable[str] = tuple(SAMPLES)) -> list[Row]:
    """Run the round trips in two parallel processes; return one row each, in the order of SAMPLES and TARGETS.

    Raises:
        RuntimeError: a process failed; the message quotes its own.
    """
    with tempfile.TemporaryDirectory(prefix="roundtrip-") as folder:
        for step in ("make", "convert"):
            with ThreadPoolExecutor() as pool:
                jobs = [pool.submit(_start, step, package, folder, archs, samples) for package in _WORKERS]
                outputs = [job.result() for job in jobs]
    rows = [json.loads(line) for text in outputs for line in text.splitlines()]
    read, written = list(SAMPLES), list(TARGETS)
    return sorted(rows, key=lambda row: (read.index(row["read"]), written.index(row["written"]), row["arch"]))


def _start(step: str, package: str, folder: str, archs: Iterable[str], samples: Iterable[str]) -> str:
    worker = ["--worker", step, package, folder, "|".join(archs), "|".join(samples)]
    done = subprocess.run([sys.executable, __file__, *worker], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {package} process of the round trip failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _work(step: str, package: str, folder: Path, archs: list[str], samples: list[str]) -> None:
    """Make the samples that need `package`, or convert all for its targets and print the rows."""
    torch.set_num_threads(1)
    for arch in archs:
        for name in samples:
            if step == "make" and SAMPLES[name].package == package and arch in SAMPLES[name].archs:
                _make(name, arch, folder)
            elif step == "convert":
                for row in _convert(name, arch, folder, _WORKERS[package]):
                    print(json.dumps(row), flush=True)


def _paths(name: str, arch: str, folder: Path) -> tuple[Path, Path]:
    stem = f"{list(SAMPLES).index(name)}-{arch}"
    return folder / (stem + SAMPLES[name].suffix), folder / f"{stem}.features"


def _make(name: str, arch: str, folder: Path) -> dict[str, torch.Tensor]:
    path, features = _paths(name, arch, folder)
    run, stages = write(SAMPLES[name], arch, path)
    images = verify.normalize(verify.photograph(_SIZE))
    outputs = verify.stage_outputs(stages, lambda: run(images))
    if SAMPLES[name].package:  # the other process needs them too
        torch.save(outputs, features)
    return outputs


def _convert(name: str, arch: str, folder: Path, targets: tuple[str, ...]) -> Iterator[Row]:
    sample = SAMPLES[name]
    if arch not in sample.archs:
        yield from (_row(name, arch, target) for target in targets)
        return
    shared = bool(sample.package)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        home = folder if shared else Path(own)
        path, features = _paths(name, arch, home)
        reference = torch.load(features, weights_only=True) if shared else _make(name, arch, home)
        backbone = read_backbone(path, ReadOptions(weights=sample.weights))
        for target in targets:
            yield _verify(_row(name, arch, target), backbone, reference, Path(own))


def _row(name: str, arch: str, target: str) -> Row:
    row = {"read": name, "made_with": SAMPLES[name].made_with, "written": target, "arch": arch}
    return row | {"max_abs_delta": None, "tensors": 0}


def _verify(row: Row, backbone: Backbone, reference: dict[str, torch.Tensor], folder: Path) -> Row:
    target = TARGETS[row["written"]]
    if not target.builds(backbone.arch):
        return row
    path = folder / f"converted{target.suffixes[0]}"
    target.save(backbone, path)
    checks = verify.verify(backbone, target.name, path, verify.photograph(_SIZE), reference)
    delta = max(delta for check in checks for delta in check.deltas.values())
    return row | {"max_abs_delta": delta, "tensors": max(check.tensors for check in checks)}


def main() -> None:
    """Write the rows of all round trips."""
    if sys.argv[1:2] == ["--worker"]:
        step, package, folder, archs, samples = sys.argv[2:]
        _work(step, package, Path(folder), archs.split("|"), samples.split("|"))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    options = parser.parse_args()
    options.out.write_text("".join(json.dumps(row) + "\n" for row in measure()), encoding="utf-8")


if __name__ == "__main__":
    main()
