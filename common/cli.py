"""Command lines: options and recipes, one-line errors with the nearest known name, exit statuses, stop requests."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from tqdm import tqdm

from common import surroundings
from common.faults import explain
from common.folders import escape

USER_ERROR, NON_FINITE, UNREAD = 2, 3, 141  # exit statuses; a stop by a signal is 128 + its number: 143, 130
STOPS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted", signal.SIGHUP: "hung up"}
REPEAT = 1.0  # seconds in which a second signal is the same stop: torchrun and Slurm send it both
PATIENCE = 60.0  # seconds without a batch after which the wait is reported

# What jsonargparse says of a value that is of none of several types
_UNION = re.compile(r'Parser key "([^"]+)": Does not validate against any of the Union .*Given value: (.+)')
_EXPECTED = re.compile(r"Expected a <class '(\w+)'>")

T = TypeVar("T")


def printable(text: str) -> str:
    """Return a text on one line, its control and other invisible characters as Python's escapes.

    A name in a stranger's file may hold sequences that a terminal obeys.
    """
    return "".join(c if c.isprintable() else escape(c) for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def find_config(option: str, name: str, folder: Path, suffixes: Sequence[str] = (".yaml",)) -> Path:
    """Return the file of a config: FOLDER/NAME.yaml, or the path that `name` is.

    Args:
        option: how the command calls it, e.g. "--recipe".
        name: a name in `folder`, or a path.
        folder: of the configs that come with the project.
        suffixes: of the files that a user may name.

    Raises:
        ValueError: there is neither; names the nearest.
    """
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.suffix in suffixes and path.is_file():
            return path
    names = config_names(folder)
    hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
    raise ValueError(f"{option} {name}: no such {option.strip('-')} or file{hint}")


def config_names(folder: Path) -> list[str]:
    """Return the names of the configs in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def complete(option: argparse.Action, names: Sequence[str]) -> None:
    """Let the shell complete the value of an option to one of the names."""
    option.completer = lambda **_: names  # type: ignore[attr-defined]  # argcomplete looks for it


class _Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of a description."""


class CommandParser(ArgumentParser):
    """An argument parser whose errors are one-line ValueErrors that name the nearest option.

    Args:
        prog: the command, for --help.
        description: of the command.
        recipes: folder of YAML files for --recipe; None: the command has no recipes.
        renamed: old dotted name of an option -> its current name. The old one still works, with a line on stderr.
        variables: names of environment variables that --help ends with, of surroundings.VARIABLES.
        **settings: of jsonargparse.ArgumentParser.
    """

    def __init__(
        self,
        prog: str,
        description: str | None,
        recipes: Path | None = None,
        renamed: Mapping[str, str] | None = None,
        variables: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        settings |= {"allow_abbrev": False, "formatter_class": _Formatter}
        super().__init__(prog=prog, description=description, **settings)
        if variables:
            listed = "\n".join(f"  {name:22}{surroundings.VARIABLES[name]}" for name in variables)
            self.epilog = f"{self.epilog or ''}\n\nenvironment variables:\n{listed}".lstrip()
        self.recipes, self.renamed = recipes, dict(renamed or {})
        if recipes is not None:
            names = config_names(recipes)
            option = self.add_argument("--recipe", type=str | None, help=f"one of {', '.join(names)}; or a YAML file")
            complete(option, names)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a ValueError in place of printing the usage."""
        text = " ".join(str(message).split())
        if union := _UNION.fullmatch(text):
            types = " or ".join(name for name in dict.fromkeys(_EXPECTED.findall(text)) if name != "NoneType")
            text = f"--{union[1]} {union[2]}: must be {types or 'of another type'}"
        sequence = any(f"Expected a <class '{kind}'>" in str(message) for kind in ("list", "tuple"))
        hint = "; several values are written '[a, b]', one as '[a]'" * sequence
        raise ValueError(f"{text}{hint}") from ex

    def parse(self, arguments: Sequence[str] | None = None) -> Namespace:
        """Parse a command line, by default the program's; options override the recipe, wherever --recipe stands.

        `recipe` of the returned options is the path of the recipe file, or None.

        Raises:
            ValueError: an option is unknown or malformed; the message names it and the nearest known one.
        """
        if "_ARGCOMPLETE" in os.environ:
            os.environ.setdefault("COMP_TYPE", "9")  # a tab. jsonargparse reads it, and zsh does not set it
        given = [self._known(word) for word in (sys.argv[1:] if arguments is None else arguments)]
        base, recipe = None, self._recipe(given)
        if recipe is not None:
            base = self.parse_object(self._read(recipe))
        options = self.parse_args(given, namespace=base)
        for group in self._names()[1]:
            if not isinstance(options[group], Namespace):
                raise ValueError(f"--{group}: {options[group]}: a group of options: give one of them, or a YAML file")
        if self.recipes is not None:
            options.recipe = recipe
        return options

    def _names(self) -> tuple[list[str], list[str]]:
        """Return the dotted names of the options that take a value, and of the groups of options."""
        names = [option[2:] for action in self._actions for option in action.option_strings if option[:2] == "--"]
        groups = [name for name in names if any(other.startswith(f"{name}.") for other in names)]
        return [name for name in names if name not in groups], groups

    def _known(self, word: str) -> str:
        """Return an option with its current name; other arguments as they are.

        Raises:
            ValueError: there is no such option.
        """
        if not word.startswith("--") or word == "--":
            return word
        name, equals, value = word[2:].partition("=")
        plus = "+" * name.endswith("+")  # jsonargparse: append to a list
        name = name.removesuffix("+")
        return word if name in self._names()[1] else f"--{self._current(name, f'--{name}')}{plus}{equals}{value}"

    def _current(self, name: str, shown: str) -> str:
        """Return the current name of an option; `shown` is how an error names it."""
        names, groups = self._names()
        if name in self.renamed:
            print(f"deprecated: {name} is now {self.renamed[name]}", file=sys.stderr)
            return self.renamed[name]
        if name in groups:
            raise ValueError(f"{shown}: a group of options, so it cannot be one value")
        if name not in names:
            raise ValueError(f"{shown}: unknown option{did_you_mean(f'--{name}', (f'--{n}' for n in names))}")
        return name

    def _recipe(self, given: list[str]) -> Path | None:
        """Return the file of the recipe on a command line, if it names one."""
        if self.recipes is None:
            return None
        found = []
        for i, word in enumerate(given):
            option, equals, value = word.partition("=")
            if option == "--recipe":
                found.append(value if equals else "".join(given[i + 1 : i + 2]))
        if not all(found):
            raise ValueError(f"--recipe: name a recipe or a file; there are {', '.join(config_names(self.recipes))}")
        if len(found) > 1:
            raise ValueError(f"--recipe {' and '.join(found)}: give one")
        return find_config("--recipe", found[0], self.recipes) if found else None

    def _read(self, recipe: Path) -> dict[str, Any]:
        """Read a recipe, with every key checked and renamed."""
        try:
            content = yaml.safe_load(recipe.read_bytes())
        except yaml.YAMLError as error:
            raise ValueError(f"{recipe}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{recipe}: expected a mapping of options, got {content!r}")
        return nest({self._current(name, f"{recipe}: {name}"): value for name, value in flatten(content).items()})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level of dotted keys."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        rows |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return rows


def nest(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as a nested mapping: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in rows.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return tree


class Stopped(KeyboardInterrupt):
    """A signal ends the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_cli(
    program: str, work: Callable[[], int | None], resumable: bool = True, also: Sequence[type[Exception]] = ()
) -> int:
    """Run a command and report user errors in one line on stderr.

    Args:
        program: its name.
        work: the command; may return an exit status.
        resumable: whether the same command with --resume continues an interrupted one.
        also: exceptions besides ValueError and OSError that are reported in one line.

    Returns:
        0 or what `work` returns; 2 for a user's mistake, files that cannot be read or written and loader processes
        that died; 143, 130 or 129 when SIGTERM, SIGINT (Ctrl-C) or SIGHUP (a closed terminal) ends it; 141, without a
        word, where nobody reads the output any more, as in `| head`.
    """
    mistakes: tuple[type[Exception], ...] = (ValueError, *also)
    logging.raiseExceptions = False  # a library's log on a full disk: what matters is written by us, and reported
    try:
        surroundings.prepare()
        try:
            with _stops_raise():
                return work() or 0
        finally:
            sys.stdout.flush()
    except OSError as error:
        dropped = surroundings.drop_output(error)
        if dropped and isinstance(error, BrokenPipeError):
            return UNREAD
        file = "standard output" if dropped else error.filename
        reason = f"{file}: {error.strerror}" if file and error.strerror else str(error)
        if dropped:
            return _report(program, reason)
        return _report(program, explain(error) or reason)
    except mistakes as error:
        return _report(program, explain(error) or str(error))
    except Exception as error:
        if line := explain(error):
            return _report(program, line)
        raise
    except KeyboardInterrupt as error:
        number = signal.Signals(error.number if isinstance(error, Stopped) else signal.SIGINT)
        say_last(f"{program}: {STOPS[number]}" + "; the same command with --resume continues it" * resumable)
        return 128 + number


def _report(program: str, reason: str) -> int:
    say_last(printable(f"{program}: error: {' '.join(reason.split())}"))
    return USER_ERROR


def say_last(line: str) -> None:
    """Print the last line of a command on stderr, below the progress bars that an error has left open."""
    for bar in [*tqdm._instances]:  # type: ignore[attr-defined]
        bar.close()
    print(line, file=sys.stderr)


@contextmanager
def _stops_raise() -> Iterator[None]:
    """Raise Stopped on a signal, so that temporary files are removed on the way out."""
    latest = -REPEAT

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal latest
        before, latest = latest, time.monotonic()
        leave_terminal(number)
        if latest - before > REPEAT:
            raise Stopped(number)

    with handling(dict.fromkeys(STOPS, stop)):
        yield


@contextmanager
def handling(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any] | signal.Handlers],
) -> Iterator[None]:
    """Set handlers of signals; those that this process ignores stay ignored, as SIGHUP under nohup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may, and gets them
        yield
        return
    wanted = {number: new for number, new in handlers.items() if signal.getsignal(number) is not signal.SIG_IGN}
    old = {number: signal.signal(number, new) for number, new in wanted.items()}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def leave_terminal(number: int) -> None:
    """After SIGHUP write to no terminal: it is gone, and writing to it would fail."""
    for stream in (1, 2) if number == signal.SIGHUP else ():
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _say_waiting(_number: int, _frame: FrameType | None) -> None:
    line = f"still waiting for images after {PATIENCE:g} s: a slow disk or network, or a loader process that hangs"
    tqdm.write(line, file=sys.stderr)


class _WaitEnded(BaseException):
    """A stop was asked for while a batch was waited for."""


class StopRequest:
    """Remembers a signal, so that the current step is finished and saved; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting = False

    def __enter__(self) -> StopRequest:
        self._handling = handling(dict.fromkeys(STOPS, self._note) | {signal.SIGALRM: _say_waiting})
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._handling.__exit__(None, None, None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        leave_terminal(number)
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self._waiting:
            self._waiting = False
            raise _WaitEnded

    def until(self, batches: Iterator[T], ends_wait: bool = True) -> Iterator[T]:
        """Yield batches until a stop is asked for; where one is waited for long, say so.

        Args:
            batches: from loader processes.
            ends_wait: whether a stop also ends the wait for a batch. Several ranks must do the same steps: they get
                all batches and stop by agreement.
        """
        while self.signal is None or not ends_wait:
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)
                    self._waiting = ends_wait
                    batch = next(batches)
                finally:
                    self._waiting = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except (StopIteration, _WaitEnded):
                return
            yield batch

    def end(self) -> NoReturn:
        """End the command with the status of the signal, which may have reached another rank."""
        raise Stopped(self.signal or signal.SIGTERM)
