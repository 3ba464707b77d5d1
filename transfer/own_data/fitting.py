"""Which benchmarks fit a user's data set, and how each is called for it, whatever the checkpoint."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse import Namespace

from common.images import source_path
from transfer.classification.data import ClassData, load_class_data, sources
from transfer.classification.options import classification_parser
from transfer.own_data.layouts import find_parts

KINDS = {"knn": "classes", "linear": "classes", "finetune": "classes", "detect": "boxes", "segment": "masks"}
VAL_FRACTION = 0.2  # tested on, where the data set has no test images
NEIGHBOURS = 20  # k of kNN: it suits small data sets, too (arXiv 2104.14294, section 4.1)
STEPS, EPOCHS = 300, 20  # of fine-tuning, at least: few images need many epochs (arXiv 1910.04867 counts steps, too)
BATCH = (16, 128)  # of fine-tuning; smaller ones diverge, as batch norm sees a few images only
RATES = {"optim.base_lr": [0.01, 0.1], "optim.head_factor": [10.0]}  # of which fine-tuning chooses
Words = list[str]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of a data set at one fraction of its training labels.

    Attributes:
        task: its command.
        fraction: of the labels.
        words: options of the command.
    """

    task: str
    fraction: float
    words: Words

    def check(self, words: Sequence[str]) -> None:
        """Check data and checkpoint as the command will, which ends before it measures.

        Args:
            words: more options; --ckpt among them.

        Raises:
            ValueError: what the command refuses.
        """
        given = [*self.words, *words, "--check-data"]
        at = f" at {self.fraction:.3g} of the labels" * (self.fraction < 1)
        try:
            if KINDS[self.task] == "classes":
                with contextlib.redirect_stdout(io.StringIO()):
                    importlib.import_module(f"transfer.{self.task}").run(given)
            else:  # a process each: their frameworks do not get along in one
                run = [sys.executable, "-m", f"transfer.{self.task}", *given]
                done = subprocess.run(run, capture_output=True, encoding="utf-8", errors="replace", check=False)
                if done.returncode:
                    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
                    raise ValueError(last[0].removeprefix(f"{self.task}: error: "))
        except ValueError as error:
            smaller = f"; --fractions {self.fraction:g} is too small" * (self.fraction < 1)
            raise ValueError(f"{self.task}{at}: {error}{smaller}") from error


def fitting(options: Namespace) -> list[str]:
    """Return the benchmarks of --tasks, else all that fit the data set.

    Raises:
        ValueError: a benchmark does not fit, or none does; the message says why.
    """
    for source in options.data:
        if not source.startswith("fashion") and not (path := source_path(source)).exists():
            raise ValueError(f"--data {source}: {path.absolute()}: no such file or folder")
    if options.tasks:
        for task in options.tasks:
            if refused := _why_not(KINDS[task], options):
                raise ValueError(f"--tasks {task}: {refused}")
        return list(dict.fromkeys(options.tasks))
    fits = [kind for kind in ("boxes", "masks") if not _why_not(kind, options)]
    if not fits and (refused := _why_not("classes", options)):  # else: their folders are no classes
        raise ValueError(f"{refused} (and no boxes or masks were found)")
    return [task for task, kind in KINDS.items() if kind in (fits or ["classes"])]


def benchmarks(options: Namespace, tasks: Sequence[str]) -> Iterator[Benchmark]:
    """Yield what is to be measured: of each task the largest fraction first.

    Raises:
        ValueError: the data set has no images for a fraction, or fractions of it cannot be taken.
    """
    common = [*_given(options, ("data_name",)), *["--allow-overlap"] * options.allow_overlap]
    common += ["--device", options.device, "--split-seed", str(options.split_seed)]
    fractions = sorted(set(options.fractions), reverse=True)
    for task in tasks:
        if KINDS[task] != "classes" and fractions != [1.0]:
            raise ValueError(
                f"--fractions {' '.join(f'{f:g}' for f in fractions)}: for knn, linear and finetune; {task} has no "
                "fractions of its annotations"
            )
    labels = {f: _class_data(options, f) for f in fractions if any(KINDS[task] == "classes" for task in tasks)}
    for task in tasks:
        for fraction in fractions:
            if KINDS[task] == "classes":
                words = [*_class_words(options), "--size", str(options.size), "--pictures", "false"]
                words += [f"--labels.ratio={fraction!r}"] * (fraction < 1)
                words += _details(task, len(labels[fraction].train), options)
            else:
                words = [
                    *_given(options, ("val_fraction", "epochs")),
                    *_annotated_words(KINDS[task], options),
                    "--resume",
                ]
            yield Benchmark(task, fraction, [*common, *words])


def _details(task: str, images: int, options: Namespace) -> Words:
    """Return what a benchmark depends on, by the number of labelled images."""
    precision = ["--precision", "auto"] * options.quick
    if task == "knn":
        return [f"--k=[{min(NEIGHBOURS, images)}]", *precision]
    if task == "linear":
        return precision
    fitted = images - round(images / 10)
    batch = min(fitted, 2 ** int(np.log2(np.clip(fitted // 4, *BATCH))))
    epochs = max(EPOCHS, -(-STEPS // (fitted // batch))) if options.epochs is None else max(1, round(options.epochs))
    words = [f"--{name}={json.dumps(values)}" for name, values in RATES.items()]
    return [*words, f"--optim.batch={batch}", f"--optim.epochs={epochs}", "--resume"]


def _given(options: Namespace, names: Sequence[str]) -> Words:
    """Return the options that were given, as words."""
    return [f"--{name.replace('_', '-')}={options[name]}" for name in names if options[name] is not None]


def _class_words(options: Namespace) -> Words:
    """Return the options that name labelled images."""
    data = options.data[0] if len(options.data) == 1 else json.dumps(options.data)
    words = [f"--data={data}", *_given(options, ("test", "classes"))]
    part = options.val_fraction
    if part is None and options.test is None:
        try:
            sources(options.data, None)
        except ValueError:  # the folders exist, so the test images are missing
            part = VAL_FRACTION
    return words + [f"--val-fraction={part}"] * (part is not None)


def _class_data(options: Namespace, fraction: float) -> ClassData:
    given = classification_parser("compare", None).parse(
        [*_class_words(options), f"--labels.ratio={fraction!r}", f"--split-seed={options.split_seed}"]
    )
    try:
        return load_class_data(given)
    except ValueError as error:
        raise ValueError(f"{error}; --fractions {fraction:g} is too small" if fraction < 1 else str(error)) from error


def _annotated_words(kind: str, options: Namespace) -> Words:
    """Return the options that name boxes or masks."""
    if kind == "boxes":
        return [f"--data={options.data[0]}", *_given(options, ("classes",))]
    folders = _mask_folders(options)
    return [f"--{name}={path}" for name, path in folders.items()]


def _mask_folders(options: Namespace) -> Mapping[str, Path]:
    data = Path(options.data[0])
    classes = Path(options.classes) if options.classes else data / "classes.txt"
    return {"images": data / "images", "masks": data / "masks", "classes": classes}


def _why_not(kind: str, options: Namespace) -> str:
    """Return why a data set has no classes, boxes or masks; "" where it has."""
    try:
        if kind == "classes":
            _class_data(options, 1.0)
        elif len(options.data) > 1:
            return f"--data {' '.join(options.data)}: {kind} lie in one folder"
        elif kind == "boxes":
            find_parts(Path(options.data[0]))
        elif absent := [path for path in _mask_folders(options).values() if not path.exists()]:
            return f"{absent[0]}: no such file or folder; masks lie in images/, masks/ and classes.txt"
    except ValueError as error:
        return str(error)
    return ""
