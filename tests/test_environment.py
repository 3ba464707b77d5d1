"""The house: one set of versions, imports that need no framework, scripts that say what they would do."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def ranges() -> dict[str, SpecifierSet]:
    """Return every package of pyproject.toml, the extras' too, and its range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for line in itertools.chain(*lists)]
    return {canonicalize_name(r.name): r.specifier for r in found if r.name != project["name"]}


def constraints() -> dict[str, str]:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_tested_set_names_every_package_and_fits_the_ranges() -> None:
    tested = constraints()
    assert {name: tested[name] for name, allowed in ranges().items() if tested[name] not in allowed} == {}
    requirements = (ROOT / "transfer/detection/requirements-detectron2.txt").read_text()
    assert "sal-detectron2==" in requirements and "--hash=sha256:" in requirements  # noqa: PT018


def test_conda_users_get_the_tested_set_too() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda == [f"python{python}", "pip", {"pip": ["-c constraints.txt", "-e .[all,dev]"]}]


def test_this_environment_is_the_tested_set() -> None:
    tested = constraints()
    here = {canonicalize_name(d.name): d.version for d in importlib.metadata.distributions()}
    differ = {name: here[name] for name in ranges() if name in here and here[name].split("+")[0] != tested[name]}
    assert not differ


def test_the_packages_import_where_detectron2_and_mmseg_are_missing() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['detectron2', 'mmseg', 'mmcv', 'mmengine']))"
    everything = "pretrain.train, converters, converters.convert, results.record, results.tables, transfer.knn"
    done = run(sys.executable, "-c", f"{blocked}; import {everything}")
    assert done.returncode == 0, done.stderr


def test_a_second_set_up_has_nothing_to_do() -> None:
    first = run("bash", "setup.sh", UNIMOCO_ENV=sys.prefix)
    second = run("bash", "setup.sh", UNIMOCO_ENV=sys.prefix)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout.strip() == sys.prefix
    assert second.stderr == ""


def test_the_front_door_says_what_it_would_run() -> None:
    front_door, python = ("bash", "pretrain/run.sh"), f"{sys.prefix}/bin/python"
    alone = run(*front_door, "--seed", "3", DRY_RUN="1", NPROC="1", UNIMOCO_ENV=sys.prefix)
    assert alone.stdout.strip() == f"{python} -m pretrain.train --recipe fashion --seed 3"
    several = {"DRY_RUN": "1", "NPROC": "8", "NNODES": "2", "UNIMOCO_ENV": sys.prefix}
    many = run(*front_door, "--recipe=moco_v2", RDZV="h:1", **several)
    torchrun = "-m pretrain.launch --nnodes 2 --rdzv-backend c10d --rdzv-endpoint h:1 --nproc-per-node 8"
    assert many.stdout.strip() == f"{python} {torchrun} -m pretrain.train --recipe=moco_v2"
    lost = run(*front_door, **several)
    assert lost.returncode != 0
    assert "set RDZV=host:port" in lost.stderr


@pytest.mark.parametrize("data", [["--data.train", "/photos"], ["--data.train=/photos"]])
def test_own_images_without_a_recipe_get_the_recipe_for_them(data: list[str]) -> None:
    done = run("bash", "pretrain/run.sh", *data, DRY_RUN="1", NPROC="1", UNIMOCO_ENV=sys.prefix)
    assert done.stdout.strip() == f"{sys.prefix}/bin/python -m pretrain.train --recipe my_folder {' '.join(data)}"
    assert "no --recipe given: using my_folder" in done.stderr


# What each room may import of the house, itself aside. Nothing imports transfer.
FLOORS = {
    "common": set(),
    "pretrain": {"common"},
    "converters": {"common"},
    "results": {"common"},
    "transfer": {"common", "converters", "results.record", "results.registry"},
}


def test_the_code_keeps_its_floors() -> None:
    pattern = re.compile(r"^\s*(?:from|import) ((?:common|pretrain|converters|results|transfer)[\w.]*)", re.MULTILINE)
    for room, allowed in FLOORS.items():
        for file in (ROOT / room).rglob("*.py"):
            for module in pattern.findall(file.read_text()):
                fits = any(module == name or module.startswith(f"{name}.") for name in (room, *allowed))
                assert fits, f"{file} imports {module}"


def test_text_is_utf_8_whatever_the_locale() -> None:
    """Text in the locale's encoding is another one on the next machine."""
    lacking = []
    for file in (path for room in FLOORS for path in (ROOT / room).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            method, given = isinstance(call.func, ast.Attribute), {word.arg for word in call.keywords}
            mode = next((a.value for a in call.args if isinstance(a, ast.Constant) and a.value in ("rb", "wb")), "")
            text = (method and name in ("read_text", "write_text")) or (name == "open" and not method and not mode)
            if (text and "encoding" not in given) or "text" in given:
                lacking.append(f"{file}:{call.lineno}")
    assert not lacking


def test_no_file_and_no_function_is_long() -> None:
    files = run("git", "ls-files", "*.py").stdout.split() or [str(p) for p in ROOT.glob("[a-z]*/**/*.py")]
    assert len(files) > 50
    long = []
    for name in files:
        text = (ROOT / name).read_text()
        long += [f"{name}: {text.count(chr(10))} lines"] * (text.count("\n") > 400)
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.end_lineno)
        long += [f"{name}: {f.name}" for f in functions if f.end_lineno - f.lineno >= 60]  # type: ignore[operator]
    assert not long


# Every command, one of its options, and a mistake that it finds in its options.
HELP = {
    "pretrain/train.py": ("--optim.epochs", "--recipe=none"),
    "converters/convert.py": ("--verify", "none.pth --to=timm"),
    "results/study.py": ("--only", "--onli=x"),
    "results/tables.py": ("--check", "--chekc"),
    "transfer/knn.py": ("--temperature", "--ckpt=none.pth"),
    "transfer/linear.py": ("--optim.weight_decay", "--ckpt=random --mode=moco --optim.base_lr=[]"),
    "transfer/finetune.py": ("--optim.head_factor", "--ckpt=random --head=none.pth"),
    "transfer/svm.py": ("--costs", "--ckpt=random --costs=[0]"),
    "transfer/detect.py": ("fashion-fpn", "--ckpt=none.pth --task=fashion-fpn"),
    "transfer/segment.py": ("fashion-fcn", "--ckpt=random --task=none"),
    "transfer/scenes.py": ("--fashion-root", "--out=x --size=1"),
}
HEAVY = ("torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib", "scipy")


@pytest.mark.parametrize("command", HELP)
def test_help_and_a_mistake_do_not_wait_for_torch(command: str) -> None:
    option, mistake = HELP[command]
    code = (
        "import runpy, sys\n"
        f"for words in (['--help'], {mistake.split()}):\n"
        f"    sys.argv = [{command!r}, *words]\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: print(end.code)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["2", "[]"], done.stderr
    assert option in done.stdout
    assert ("\nenvironment variables:\n" in done.stdout) == (command not in ("results/tables.py", "transfer/scenes.py"))
    assert ": error: " in done.stderr
