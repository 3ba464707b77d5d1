"""A study file: which checkpoints, which tasks, which seeds; and the jobs that it expands to. Keys: docs/study.md."""

from __future__ import annotations

import fnmatch
import itertools
import re
import shlex
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from common.cli import did_you_mean

PRETRAIN = "pretrain"
SCHEMA = Path(__file__).with_name("study_schema.yaml")
DEFAULTS = {
    "runs": "runs", "records": "results/records", "state": "runs/study", "pretrain": "bash pretrain/run.sh",
    "paths": {}, "after": [],
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One command of a study.

    Attributes:
        name: pretrain/CHECKPOINT, or KEY/CHECKPOINT_seedN for the task under KEY; _seedN-M for several seeds.
        command: its words.
        key: "pretrain", or the key of its task in the study file.
        checkpoint: name of the checkpoint that it trains or measures.
        ckpt: the checkpoint: a file, or SCHEME:NAME.
        receipt: the file that says that it is done.
        needs: the files that have to exist before it starts; a newer one makes it run again.
        task: of its records; empty for pre-training.
        seeds: of its records.
        minutes: estimated wall time; None: unknown.
        gpus: number of GPUs that the estimate is for, and that Slurm is asked for.
        title: of the checkpoint, for people.
        options: of a pre-training's checkpoint, for the commands that measure it.
    """

    name: str
    command: tuple[str, ...]
    key: str
    checkpoint: str
    ckpt: str
    receipt: str
    needs: tuple[str, ...] = ()
    task: str = ""
    seeds: tuple[int, ...] = (0,)
    minutes: float | None = None
    gpus: int = 0
    title: str = ""
    options: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """The output of its command, and its exit status."""
        return Path(self.receipt).with_suffix(".log")


@dataclass(frozen=True)
class Study:
    """A study file, expanded.

    Attributes:
        name: the file's name.
        jobs: a checkpoint's pre-training before its measurements.
        paths: folders that the commands read, by the name of their placeholder.
        records: the folder of records.
        folder: of its receipts, logs and locks.
        after: commands that follow the jobs.
    """

    name: str
    jobs: tuple[Job, ...]
    paths: Mapping[str, Path]
    records: Path
    folder: Path
    after: tuple[tuple[str, ...], ...]

    def select(self, patterns: Sequence[str]) -> tuple[Job, ...]:
        """Return the jobs whose name, task or checkpoint matches one of the patterns, and what they need.

        Raises:
            ValueError: a pattern that matches none.
        """
        if not patterns:
            return self.jobs
        chosen: set[str] = set()
        for pattern in patterns:
            found = [j for j in self.jobs if any(fnmatch.fnmatch(n, pattern) for n in (j.name, j.key, j.checkpoint))]
            if not found:
                names = {name for job in self.jobs for name in (job.name, job.key, job.checkpoint)}
                raise ValueError(f"--only {pattern}: matches no job of {self.name}{did_you_mean(pattern, names)}")
            chosen |= {receipt for job in found for receipt in (job.receipt, *job.needs)}
        return tuple(job for job in self.jobs if job.receipt in chosen)


def load(path: Path, paths: Mapping[str, str] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the YAML file.
        paths: replaces entries of its `paths`.

    Raises:
        ValueError: names file, key and mistake in one line.
    """
    try:
        tree = yaml.load(path.read_bytes(), _Loader)
        _check(tree)
        return _expand(path.stem, tree, paths or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check(tree: Any) -> None:
    """Compare a study file with its schema; name the key that does not fit."""
    error = best_match(Draft202012Validator(yaml.safe_load(SCHEMA.read_bytes())).iter_errors(tree))
    if error is None:
        return
    key = error.json_path.removeprefix("$").lstrip(".") or "the file"
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(name for name in error.instance if name not in known)
        message = f"{unknown}: unknown key{did_you_mean(str(unknown), known)}; there are {', '.join(known)}"
        raise ValueError(message if key == "the file" else f"{key}.{message}")
    raise ValueError(f"{key}: {error.message}")


def _expand(study: str, tree: dict[str, Any], replaced: Mapping[str, str]) -> Study:
    tree = DEFAULTS | tree
    paths = dict(tree["paths"])
    for key, folder in replaced.items():
        if key not in paths:
            raise ValueError(f"--path {key}: unknown{did_you_mean(key, paths)}; paths has {', '.join(paths) or 'none'}")
        paths[key] = folder
    state = Path(tree["state"], study)
    checkpoints = {
        family: list(_checkpoints(f"checkpoints.{family}", entry, tree, paths, state))
        for family, entry in tree["checkpoints"].items()
    }
    tasks: list[Job] = []
    for key, entry in tree["tasks"].items():
        tasks += _measurements(state, key, entry, checkpoints, paths, tree["records"], tasks)
    jobs: list[Job] = []
    for checkpoint in itertools.chain(*checkpoints.values()):
        jobs += [checkpoint, *(job for job in tasks if job.checkpoint == checkpoint.checkpoint)]
    for name, times in Counter(job.name for job in jobs).items():
        if times > 1:
            raise ValueError(f"{name} occurs {times} times; is a placeholder missing in a name?")
    after = tuple(_words("after", entry, paths) for entry in tree["after"])
    read = {key: Path(value) for key, value in paths.items()}
    return Study(study, tuple(job for job in jobs if job.command), read, Path(tree["records"]), state, after)


def _checkpoints(key: str, entry: Any, tree: Any, paths: Mapping[str, str], folder: Path) -> Iterator[Job]:
    """Expand a family of checkpoints; the command is empty where there is nothing to train."""
    if ("pretrain" in entry) == ("ckpt" in entry):
        raise ValueError(f"{key}: give either pretrain (arguments) or ckpt (an existing checkpoint)")
    over, runs = entry.get("over", {}), tree["runs"]
    for values in itertools.product(*over.values()):
        known = {**paths, **dict(zip(over, map(str, values), strict=True))}
        name = _fill(f"{key}.name", entry["name"], known)
        if not re.fullmatch(r"[\w.=+-]+", name):
            raise ValueError(f"{key}.name: {name}: may hold letters, digits and . _ = + -")
        if "pretrain" in entry:
            front = _words("pretrain", tree["pretrain"], paths)
            command = (*front, "--runs", runs, "--name", name, *_words(f"{key}.pretrain", entry["pretrain"], known))
            ckpt, receipt = f"{runs}/{name}/last.pth", str(folder / PRETRAIN / f"{name}.done")
        else:
            command, ckpt = (), _fill(f"{key}.ckpt", entry["ckpt"], known)
            receipt = "" if is_scheme(ckpt) else ckpt
            if receipt and not Path(ckpt).is_file():
                raise ValueError(f"{key}.ckpt: {ckpt}: no such file; for other weights write SCHEME:NAME")
        more = {name: entry[name] for name in ("minutes", "gpus", "title") if name in entry}
        options = _words(f"{key}.options", entry.get("options", ""), known)
        yield Job(f"{PRETRAIN}/{name}", command, PRETRAIN, name, ckpt, receipt, options=options, **more)


def _measurements(
    folder: Path, key: str, entry: Any, checkpoints: Mapping[str, Sequence[Job]], paths: Mapping[str, str],
    records: str, above: Sequence[Job],
) -> Iterator[Job]:  # fmt: skip
    """Expand a task to its jobs, one for each checkpoint and seed, or group of seeds; `above` are those before it."""
    names = {job.checkpoint for family in checkpoints.values() for job in family} | checkpoints.keys()
    only = entry.get("only", ["*"])
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"tasks.{key}.only: {pattern}: matches no checkpoint{did_you_mean(pattern, names)}")
    words = _words(f"tasks.{key}.command", entry["command"], paths)
    cost = {name: entry[name] for name in ("minutes", "gpus") if name in entry}
    meant = [
        job
        for family, jobs in checkpoints.items()
        for job in jobs
        if any(fnmatch.fnmatch(name, pattern) for name in (family, job.checkpoint) for pattern in only)
    ]
    for other in entry.get("needs", []):
        if other not in (known := {job.key for job in above}):
            raise ValueError(f"tasks.{key}.needs: {other}: no task above it{did_you_mean(other, known)}")
    for job, seed in itertools.product(meant, entry.get("seeds", [0])):
        seeds = tuple(map(str, seed if isinstance(seed, list) else [seed]))
        name = f"{key}/{job.checkpoint}_seed{'-'.join(seeds)}"
        receipt = str(folder / f"{name}.json")
        command = (*words, "--ckpt", job.ckpt, "--seeds", *seeds, "--records", records, "--receipt", receipt)
        before = [o for o in above if o.checkpoint == job.checkpoint and o.key in entry.get("needs", [])]
        needs = dict.fromkeys([job.receipt] * bool(job.receipt) + [n for o in before for n in (o.receipt, *o.needs)])
        yield Job(
            name, (*command, *job.options), key, job.checkpoint, job.ckpt, receipt, tuple(needs),
            entry.get("task", key), tuple(map(int, seeds)), title=job.title, **cost,
        )  # fmt: skip


def is_scheme(ckpt: str) -> bool:
    """Return whether a checkpoint is SCHEME:NAME (random:, timm:, torchvision:) and no file."""
    return re.match(r"[a-z]+:", ckpt) is not None


def _words(key: str, template: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """Split a command or arguments into words and fill in the placeholders; a script has to exist."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ValueError(f"{key}: {template}: {error}") from error
    words = [_fill(key, word, known) for word in words]
    script = Path(next((word for word in words if word.endswith((".py", ".sh"))), ""))
    if words and not words[0].startswith("-") and not script.exists():
        near = did_you_mean(str(script), map(str, script.parent.glob(f"*{script.suffix}")))
        raise ValueError(f"{key}: {script}: no such file{near}")
    return tuple(words)


def _fill(key: str, template: Any, known: Mapping[str, str]) -> str:
    """Replace {placeholders}."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(str(template)) if field is not None]
    except ValueError as error:
        raise ValueError(f"{key}: {template}: {error}; write a literal brace twice") from error
    for field in fields:
        if field not in known:
            near = did_you_mean(field, known)
            raise ValueError(f"{key}: {{{field}}}: unknown placeholder{near}; there are {', '.join(known) or 'none'}")
    return str(template).format_map(known)


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice: YAML's own rule is that the last one wins, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name, times in Counter(map(str, names)).items():
            if times > 1:
                raise ValueError(f"{name}: occurs {times} times, at line {node.start_mark.line + 1} and below")
        return super().construct_mapping(node, deep)
