"""Compare checkpoints on your own images, boxes or masks.

bash transfer/compare.sh --ckpt runs/birds/last.pth dino_r50.pth random torchvision:resnet50 --data /data/birds
bash transfer/compare.sh --ckpt A.pth B.pth random --data DIR --fractions 0.01 0.1 1 --seeds 0 1 2 --jobs 2
bash transfer/compare.sh --ckpt A.pth B.pth --label mine theirs --data DIR --quick      kNN and linear, small views
bash transfer/compare.sh --ckpt A.pth B.pth --data DIR --dry-run                        its jobs

What fits the data is measured: class folders or lists by knn, linear and finetune; boxes by detect; masks (images/,
masks/ and classes.txt) by segment. Everything is checked first. Then it is a study: OUT/compare.yaml lists its jobs,
OUT/compare holds their logs, and the same command resumes it. OUT/index.html and OUT/compare.csv hold the results.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from common.cli import CommandParser, printable, run_cli
from common.extras import require
from common.files import write_text
from common.surroundings import DEVICES, WEIGHTS
from transfer.options import Distinct

TASKS = ("knn", "linear", "finetune", "detect", "segment")
QUICK, QUICK_SIZE = ("knn", "linear"), 128  # views of so many pixels take a third of the time of 224
SIZE = 224  # pixels, of views for checkpoints that do not say at which they were trained
FROZEN = ("knn", "linear")  # they share features, which the first of them computes


def fraction(text: str | float) -> float:
    """Return a fraction of the labels; raise an error for what is none."""
    value = float(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{value:g}: must be above 0 and at most 1")
    return value


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = CommandParser("transfer/compare.sh", __doc__, variables=("UNIMOCO_ENV", *DEVICES, *WEIGHTS))
    p.add_argument(
        "--ckpt", nargs="+", default=[], metavar="CKPT",
        help="what is compared: files in any format that converters read, random (of the first one's network), "
        "random:ARCH, torchvision:NAME, timm:NAME",
    )  # fmt: skip
    p.add_argument(
        "--label", nargs="+", default=[], metavar="NAME",
        help="names, one per checkpoint; one name for several says that they are pre-trainings that differ in the seed",
    )  # fmt: skip
    p.add_argument("--data", nargs="+", default=[], metavar="DIR", help="your data set; several sources are mixed")
    p.add_argument("--test", help="test images, where --data has no val/ or test/; default: a fifth of --data")
    p.add_argument("--val-fraction", type=float | None, help="in place of --test: test on this part of --data")
    p.add_argument("--split-seed", type=int, default=0, help="of the choice of that part")
    p.add_argument("--classes", help="file with one class name per line")
    p.add_argument("--data-name", help="of your data in tables; default: that of its folder")
    p.add_argument("--allow-overlap", action="store_true", help="accept test images that are training images")
    p.add_argument("--tasks", nargs="+", choices=TASKS, default=[], help="default: all that fit the data")
    p.add_argument(
        "--fractions", type=fraction, nargs="+", default=[1.0], action=Distinct,
        help="of the training labels: class-balanced, and a smaller one is part of a larger one",
    )  # fmt: skip
    p.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], action=Distinct, help="of benchmarks and random weights",
    )  # fmt: skip
    p.add_argument(
        "--epochs", type=PositiveFloat | None,
        help="schedule of finetune (whole epochs), detect and segment; default: by the number of images",
    )  # fmt: skip
    p.add_argument("--size", type=int | None, help="side of views in pixels; default: the largest of pre-training")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--jobs", type=PositiveInt, default=1, help="jobs at a time")
    p.add_argument("--out", type=Path | None, metavar="DIR", help="default: runs/compare/NAME of the data")
    p.add_argument("--quick", action="store_true", help=f"kNN and linear on views of {QUICK_SIZE} px, bf16 where fast")
    p.add_argument("--dry-run", action="store_true", help="check everything and list the jobs")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Check everything, write the study and become it; return 2 for a user's mistake."""
    return run_cli("compare", lambda: _run(parser().parse(arguments)), resumable=False)


def _run(options: Namespace) -> int:
    check(options)
    require("snakemake")
    from transfer.own_data import fitting  # here: --help and mistakes do not wait for torch
    from transfer.own_data.options import file_name

    if options.quick:
        options.tasks = options.tasks or [*QUICK]
    tasks = fitting.fitting(options)
    if options.epochs is not None and not {*tasks} - {*FROZEN}:
        raise ValueError(f"--epochs {options.epochs:g}: {' and '.join(tasks)} train no backbone; leave it out")
    checkpoints = read(options)
    with tempfile.TemporaryDirectory() as scratch:
        found = list(fitting.benchmarks(options, tasks))
        words = ["--out", scratch, "--seeds", str(options.seeds[0])]
        for benchmark in found:
            benchmark.check([*words, "--ckpt", checkpoints[0]])
        for ckpt in checkpoints[1:]:
            found[0].check([*words, "--ckpt", ckpt])
    name = file_name(options.data_name, Path(options.data[0]))
    out = options.out or Path("runs/compare", name)
    about = f"{name}: {', '.join(tasks)}" + f"; quick: views of {options.size} px" * options.quick
    tree = study(options, checkpoints, found, out, about)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    command = [sys.executable, "-m", "results.study", "--jobs", str(options.jobs), "--study"]
    if not options.dry_run:
        write_text(out / "compare.yaml", text)
        print(f"{about}; {len(checkpoints)} checkpoints; logs in {out / 'compare'}", flush=True)
        os.execv(command[0], [*command, str(out / "compare.yaml")])  # gets the signals of the user
    with tempfile.TemporaryDirectory() as scratch:
        write_text(Path(scratch, "compare.yaml"), text)
        return subprocess.call([*command, f"{scratch}/compare.yaml", "--dry-run"])


def check(options: Namespace) -> None:
    """Raise a ValueError for options that contradict each other."""
    given, labels = options.ckpt, options.label
    if len(given) < 2:
        raise ValueError(f"--ckpt {' '.join(given)}: give two or more to compare, e.g. also random")
    for name, times in Counter(given).items():
        if times > 1:
            raise ValueError(f"--ckpt {name}: given {times} times")
    if labels and len(labels) != len(given):
        raise ValueError(f"--label {' '.join(labels)}: {len(labels)} names for {len(given)} checkpoints")
    if not all(map(str.strip, labels)):
        raise ValueError("--label '': give each checkpoint a name")
    if not options.data:
        raise ValueError("--data is missing: your images, boxes or masks")
    if options.quick and {*options.tasks} - {*QUICK}:
        raise ValueError(f"--quick is {' and '.join(QUICK)}: leave out --tasks {' '.join(options.tasks)}")
    if min(options.seeds) < 0:
        raise ValueError(f"--seeds {min(options.seeds)}: must not be negative")


def read(options: Namespace) -> list[str]:
    """Read every checkpoint; return them with the network of `random` named, and set --size.

    Raises:
        ValueError: one cannot be read.
    """
    from transfer.benchmark import read_checkpoint

    sizes, networks = [], list[str]()
    for ckpt in options.ckpt:
        if not ckpt.startswith("random"):
            try:
                backbone = read_checkpoint(ckpt, 0)
            except ValueError as error:
                if "--arch" not in str(error):
                    raise
                how = f"python converters/convert.py {ckpt} --arch NETWORK --to torchvision"
                raise ValueError(f"{error}; here, convert it first: {how}") from error
            sizes.append(int(backbone.meta.get("image_size", SIZE)))
            networks.append(backbone.arch)
    if options.size is None:
        largest = max(sizes, default=SIZE)
        options.size = min(largest, QUICK_SIZE) if options.quick else largest
    # In a quick comparison random weights are drawn once: each draw has features of its own.
    named = f"random:{networks[0] if networks else 'resnet50'}" + "?seed=0" * options.quick
    found = [named if ckpt == "random" else ckpt for ckpt in options.ckpt]
    for ckpt in found:
        if ckpt.startswith("random"):
            read_checkpoint(ckpt, 0)
    return found


def titles(options: Namespace) -> list[str]:
    """Return the name of each checkpoint: --label, else that of its file, with as many folders as tell them apart."""
    if options.label:
        return [printable(label) for label in options.label]
    paths = [Path(ckpt) for ckpt in options.ckpt]
    depth = [2 if path.name == "last.pth" else 1 for path in paths]  # runs/NAME/last.pth
    while True:
        names = [_shown(path, n) for path, n in zip(paths, depth, strict=True)]
        count = Counter(names)
        more = [i for i, name in enumerate(names) if count[name] > 1 and depth[i] < len(paths[i].parts)]
        if not more:
            return names
        for i in more:
            depth[i] += 1


def _shown(path: Path, depth: int) -> str:
    if ":" in path.parts[0]:  # timm:NAME
        return printable(str(path))
    parts = path.parts[-depth:]
    return printable("/".join(parts[:-1] if parts[-1] == "last.pth" and len(parts) > 1 else parts))


def study(
    options: Namespace, checkpoints: Sequence[str], found: Sequence[Any], out: Path, about: str
) -> dict[str, Any]:
    """Return the content of the study file.

    Args:
        options: of the command.
        checkpoints: as `read` returns them.
        found: the benchmarks, of `fitting.benchmarks`.
        out: folder of everything that is made.
        about: title of the page.
    """
    entries: dict[str, dict[str, str]] = {}
    drawn: list[str] = []  # checkpoints whose weights are drawn with the seed of the benchmark
    for given, ckpt, title in zip(options.ckpt, checkpoints, titles(options), strict=True):
        key = re.sub(r"[^\w.=+-]+", "-", _shown(Path(given), 2 if given.endswith("last.pth") else 1))
        key += f"-{1 + len(entries)}" * (key in entries)
        files = shlex.join(["--records", str(out / "records" / key), "--out", str(out / "runs" / key)])
        entries[key] = {"name": key, "title": title, "ckpt": _literal(ckpt), "options": _literal(files)}
        drawn += [key] * (ckpt.startswith("random:") and "seed=" not in ckpt)
    fixed = [key for key in entries if key not in drawn]
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    tasks: dict[str, dict[str, Any]] = {}
    heads: list[str] = []  # of the jobs that compute features for all others
    for benchmark in found:
        task, seeds = benchmark.task, options.seeds
        command = _literal(shlex.join([python, "-m", f"transfer.{task}", *benchmark.words]))
        name = task + f"_{benchmark.fraction:g}" * (benchmark.fraction < 1)
        # Only random weights differ by the seed in kNN; linear fits the heads of all seeds on features read once.
        each = [seeds] if task in FROZEN else seeds
        parts = (
            {name: (fixed, seeds[:1]), f"{name}.drawn": (drawn, each)} if task == "knn" else {name: ([*entries], each)}
        )
        for key, (only, of_seeds) in parts.items():
            if only:
                tasks[key] = {"task": task, "command": command, "seeds": [*of_seeds], "only": only}
                tasks[key] |= {"needs": heads} if heads and task in FROZEN else {}
        if benchmark is found[0] and task in FROZEN:
            heads = [*tasks]
    page = [
        python,
        "-m",
        "results.comparison",
        "--study",
        str(out / "compare.yaml"),
        "--out",
        str(out),
        "--title",
        about,
    ]
    return {
        "records": str(out / "records"), "state": str(out), "checkpoints": entries, "tasks": tasks,
        "after": [_literal(shlex.join(page))],
    }  # fmt: skip


def _literal(text: str) -> str:
    """Return a text in which a study file sees no placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


if __name__ == "__main__":
    sys.exit(main())
