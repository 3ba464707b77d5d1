"""The benchmarks as a function: the commands' own code, with Python values in place of a command line."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cli import CommandParser, did_you_mean, flatten
from common.distributed import stop
from results.record import Record

TASKS = ("knn", "linear", "finetune", "svm", "detect", "segment")  # names of the commands


def evaluate(
    ckpt: str | Path, data: str | Path | Sequence[str] | None = None, tasks: Sequence[str] = ("knn",), **options: Any
) -> list[Record]:
    """Measure a checkpoint as the commands of the same names do: knn, linear, finetune, svm, detect, segment.

    Each result is printed and written to runs/records; what is on record there is read, not measured again.

    >>> from transfer import evaluate
    >>> records = evaluate("random:resnet18", data="birds", val_fraction=0.25, k=[1, 5])  # doctest: +ELLIPSIS
    knn: data check passed ...
    >>> record = records[0]
    >>> record.headline, 0 <= record.metrics[record.headline] <= 1
    ('knn_top1_k5', True)

    Args:
        ckpt: a checkpoint file, random:ARCH, torchvision:NAME or timm:NAME; --ckpt.
        data: --data; None where a task has other options for it, as segment has images, masks and classes.
        tasks: names of commands.
        options: of all these commands: `val_fraction=0.2` is --val-fraction 0.2, `seeds=[0, 1]` is --seeds 0 1,
            `labels={"ratio": 0.1}` is --labels.ratio 0.1, `force=True` is --force. Of several tasks, each has them.

    Returns:
        The records in the order of the tasks, one per seed; none with dry_run or check_data.

    Raises:
        ValueError: a task or an option that does not exist, or any mistake that ends a command with exit status 2.
        VerificationError: a framework's model is not the checkpoint.
    """
    if isinstance(tasks, str):
        raise ValueError(f"tasks={tasks!r}: give a list, [{tasks!r}]")
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"task {task!r}: one of {', '.join(TASKS)}{did_you_mean(task, TASKS)}")
    given = {"ckpt": ckpt, **({} if data is None else {"data": data}), **options}
    entries = [importlib.import_module(f"transfer.{task}") for task in tasks]
    try:
        return [record for entry in entries for record in entry.run(command_line(entry.parser(), given))]
    finally:
        stop()


def command_line(parser: CommandParser, values: Mapping[str, Any]) -> list[str]:
    """Return the words that give options these values; the parser refuses unknown options when it reads them.

    Args:
        parser: of the command.
        values: by the options' names, with _ for -; groups of options as mappings.
    """
    known = {name: action for action in parser._actions for name in action.option_strings}
    words: list[str] = []
    for name, value in flatten(values).items():
        option = next((word for word in (f"--{name}", f"--{name.replace('_', '-')}") if word in known), f"--{name}")
        takes = known[option].nargs if option in known else None
        if takes == 0:
            words += [option] * bool(value)
        elif takes in ("+", "*"):
            words += [option, *map(str, [value] if isinstance(value, str | int) else value)]
        else:
            words.append(f"{option}={value if isinstance(value, str | Path) else json.dumps(value)}")
    return words
