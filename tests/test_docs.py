"""README and docs: commands name files and options that exist, links lead somewhere, pages are short."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.pages import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"source", "git", "conda", "apt-get", "cd", "snakemake", "ruff", "mypy", "pip", "docker"}
OTHERS |= {"unimoco-install-detectron2"}  # it takes no options
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEADS = [*ROOT.glob("pretrain/recipes/*.yaml"), *ROOT.glob("transfer/configs/**/*.yaml")]  # open with their command


def heads_of_recipes() -> list[tuple[str, list[str]]]:
    """Return the commands in the comments that recipes open with, by file."""
    found = []
    for path in HEADS:
        comment = "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
        for line in comment.replace("\\\n", " ").splitlines():
            if re.match(r"(bash|python|torchrun) ", line):
                found.append((path.name, shlex.split(line, comments=True)))
    return found


ALL = [(page.name, words) for page in PAGES for words in commands(page.read_text())] + heads_of_recipes()


def parse(words: list[str]) -> None:
    """Parse a command's options with its own parser; a ValueError or SystemExit means that it cannot be run."""
    words = [word for word in words if word != "…"]
    if words[0] in SCRIPTS:
        words = ["python", "-m", SCRIPTS[words[0]].partition(":")[0], *words[1:]]
    script = next((i for i, word in enumerate(words) if re.fullmatch(r"[\w/.]+\.(py|sh)", word)), None)
    module = next((i for i, word in enumerate(words) if word == "-m"), None)
    if module is not None:
        name, arguments = words[module + 1].replace(".", "/") + ".py", words[module + 2 :]
    else:
        assert script is not None, words
        name, arguments = words[script], words[script + 1 :]
    assert (ROOT / name).is_file(), name
    if name in ("pretrain/run.sh", "pretrain/slurm.sh"):
        importlib.import_module("pretrain.config").parse(arguments)
    elif name.startswith("transfer/") and name != "transfer/scenes.py":
        entry = importlib.import_module(str(Path(name).with_suffix("")).replace("/", "."))
        (entry.parse if hasattr(entry, "parse") else entry.parser().parse)(arguments)
    elif name == "results/reproduce.sh":
        importlib.import_module("results.study").parser().parse(arguments)
    elif name == "results/tables.py":
        importlib.import_module("results.tables").parser().parse(arguments)
    elif name == "converters/convert.py":
        importlib.import_module("converters.convert").parser().parse(arguments)


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in ALL])
def test_every_command_on_a_page_can_be_run_as_it_stands(page: str, words: list[str]) -> None:
    if words[0] in OTHERS:
        return
    if words[0] in ("bash", "python", "torchrun", "sbatch", "srun", *SCRIPTS):
        parse(words)
    elif words[0] == "eval":  # eval "$(register-python-argcomplete SCRIPT …)"
        program, *scripts = words[1].removeprefix("$(").removesuffix(")").split()
        assert program == "register-python-argcomplete", words
        assert scripts, words
        assert set(scripts) <= SCRIPTS.keys(), words
    else:
        assert words[0] == "make", words
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short_and_every_page_is_linked() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name
