"""Command lines: options, recipes, renamed options, errors in one line, exit statuses, stop requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.cli import CommandParser, StopRequest, find_config, flatten, nest, run_cli
from tests.common.pictures import write


@dataclass(frozen=True)
class Model:
    """A model.

    Args:
        width: of a layer.
        sizes: of others.
    """

    width: int = 8
    sizes: list[int] = field(default_factory=lambda: [1, 2])


@pytest.fixture
def parser(tmp_path: Path) -> CommandParser:
    """Return a parser of --seed and --model.*; the recipe small; --model.depth and --speed were renamed."""
    (tmp_path / "small.yaml").write_text("seed: 3\nmodel:\n  width: 2\n")
    parser = CommandParser("tool", "A tool.", recipes=tmp_path, renamed={"model.depth": "model.width", "speed": "seed"})
    parser.add_argument("--seed", type=int, default=0)
    parser.add_class_arguments(Model, nested_key="model")
    return parser


class TestOptions:
    def test_defaults_recipe_and_command_line(self, parser: CommandParser, tmp_path: Path) -> None:
        assert (parser.parse([]).seed, parser.parse([]).recipe) == (0, None)
        options = parser.parse(["--seed=5", "--recipe", "small"])
        assert (options.seed, options.model.width, options.recipe) == (5, 2, tmp_path / "small.yaml")

    def test_a_recipe_may_be_any_file(self, parser: CommandParser, tmp_path: Path) -> None:
        file = tmp_path / "folder" / "mine.yaml"
        file.parent.mkdir()
        file.write_text("model: {sizes: [4]}\n")
        assert parser.parse(["--recipe", str(file)]).model.sizes == [4]

    def test_a_group_may_be_a_file_and_a_list_may_grow(self, parser: CommandParser, tmp_path: Path) -> None:
        (tmp_path / "group.yaml").write_text("width: 6\n")
        options = parser.parse([f"--model={tmp_path / 'group.yaml'}", "--model.sizes+=3"])
        assert (options.model.width, options.model.sizes) == (6, [1, 2, 3])

    @pytest.mark.parametrize("words", [["--model.depth", "5"], ["--model.depth=5"]])
    def test_an_old_name_works_and_says_the_new_one(
        self, parser: CommandParser, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert parser.parse(words).model.width == 5
        assert capsys.readouterr().err == "deprecated: model.depth is now model.width\n"

    def test_an_old_name_in_a_recipe(
        self, parser: CommandParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "old.yaml").write_text("speed: 4\nmodel:\n  depth: 7\n")
        options = parser.parse(["--recipe=old"])
        assert (options.seed, options.model.width) == (4, 7)
        assert capsys.readouterr().err.splitlines() == [
            "deprecated: speed is now seed", "deprecated: model.depth is now model.width"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--sede=1"], "--sede: unknown option; did you mean --seed?"),
            (["--model.widht", "1"], "--model.widht: unknown option; did you mean --model.width?"),
            (["--model=1"], '"model": Unable to load config'),
            (["--seed=x"], "Expected a <class 'int'>"),
            (["--model.sizes=3"], r"one as '\[a\]'"),
            (["stray"], "stray"),
            (["--recipe=smal"], "--recipe smal: no such recipe or file; did you mean small?"),
            (["--recipe=none"], "--recipe none: no such recipe or file; there are small"),
            (["--recipe=small", "--recipe", "small"], "--recipe small and small: give one"),
            (["--recipe"], "--recipe: name a recipe or a file; there are small"),
        ],
    )
    def test_mistakes_are_value_errors_of_one_line(self, parser: CommandParser, words: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message.replace("?", r"\?")) as error:
            parser.parse(words)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sede: 1", "bad.yaml: sede: unknown option; did you mean --seed?"),
            ("model: 3", "bad.yaml: model: a group of options"),
            ("[1, 2", "bad.yaml: not YAML"),
            ("- 1", "bad.yaml: expected a mapping of options"),
            ("seed: x", "Expected a <class 'int'>"),
        ],
    )
    def test_mistakes_in_a_recipe(self, parser: CommandParser, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            parser.parse(["--recipe=bad"])

    def test_a_command_without_recipes(self) -> None:
        parser = CommandParser("tool", None)
        parser.add_argument("--seed", type=int, default=0)
        assert parser.parse(["--seed", "2"]).seed == 2
        with pytest.raises(ValueError, match="--recipe: unknown option"):
            parser.parse(["--recipe=x"])


def test_help_ends_with_the_environment_variables() -> None:
    parser = CommandParser("tool", "A\ntool.", variables=["NPROC", "OMP_NUM_THREADS"], epilog="tasks:\n  a")
    lines = parser.format_help().splitlines()
    assert lines[-6:-2] == ["tasks:", "  a", "", "environment variables:"]
    assert [line.split()[0] for line in lines[-2:]] == ["NPROC", "OMP_NUM_THREADS"]


# What is typed, with and without what bash says of the key and zsh does not.
COMPLETIONS = {
    "pretrain.train --recipe ": ["fashion", "moco_v2", "my_folder"],
    "transfer.detect --task voc": ["voc-c4-24k"],
    "transfer.knn --recipe=x --temp": ["--temperature"],
}


@pytest.mark.parametrize(("typed", "names"), COMPLETIONS.items())
@pytest.mark.parametrize("key", [{}, {"COMP_TYPE": "9"}], ids=["zsh", "bash"])
def test_the_shell_completes(typed: str, names: list[str], key: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    words = {"COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", **key}
    written = tmp_path / "completions"
    env = {**os.environ, **words, "_ARGCOMPLETE_STDOUT_FILENAME": str(written)}
    code = f"import sys; from {typed.split()[0]} import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, timeout=60)
    found = [line.strip() for line in written.read_text().splitlines()]
    assert set(names) <= set(found)


def test_a_config_is_found_by_name_or_path(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    assert find_config("--task", "a", tmp_path) == find_config("--task", str(tmp_path / "a.yaml"), Path("/"))
    with pytest.raises(ValueError, match="--task b: no such task or file; there are a"):
        find_config("--task", "b", tmp_path)


def test_nest_undoes_flatten() -> None:
    tree = {"a": 1, "b": {"c": [2], "d": {"e": None}}}
    assert flatten(tree) == {"a": 1, "b.c": [2], "b.d.e": None}
    assert nest(flatten(tree)) == tree


class Special(RuntimeError):
    """An error that one command reports in a line."""


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("seed=-1:\n must be 0 or more"), 2, "tool: error: seed=-1: must be 0 or more\n"),
        (FileNotFoundError(2, "No such file", "x.pth"), 2, "tool: error: x.pth: No such file\n"),
        (Special("odd"), 2, "tool: error: odd\n"),
        (KeyboardInterrupt(), 130, "tool: interrupted; the same command with --resume continues it\n"),
    ],
)
def test_a_users_error_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("tool", lambda: fail(error), also=(Special,)) == status
    assert capsys.readouterr().err == line


@pytest.mark.fault("a newcomer's mistakes", "knn", "values of a wrong type")
@pytest.mark.fault("third-party exceptions", "knn", "images that do not fit into memory")
def test_what_libraries_say_at_length_is_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transfer.knn import main

    for i in range(8):
        write(tmp_path / f"images/{i % 2}/{i}.png", 30 * i)
    given = ["--ckpt=random:resnet18", f"--data={tmp_path}/images", f"--test={tmp_path}/images", "--device=cpu"]
    given += [f"--records={tmp_path}/records", f"--out={tmp_path}/out", "--cache=null", "--k=[3]", "--workers=0"]
    for wrong, message in {
        "--k=x": "--k x: must be int or list; several values are written '[a, b]', one as '[a]'",
        "--k=[1.5]": "--k [1.5]: must be int",
        "--size=1e9": "--size 1e9: must be int",
        "--temperature=nan": "--temperature nan: must be float or list; several values",
        "--size=200000": "memory ran out (",
    }.items():
        assert main([*given, wrong]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("knn: error: ")]
        assert line.removeprefix("knn: error: ").startswith(message), line
        assert len(line) < 300


def test_other_errors_and_statuses_pass() -> None:
    assert run_cli("tool", lambda: 7) == 7
    assert run_cli("tool", lambda: None) == 0
    with pytest.raises(Special):
        run_cli("tool", lambda: fail(Special("a fault of ours")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_is_remembered_and_a_second_interrupt_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
