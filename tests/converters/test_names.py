"""A file's name is data wherever it is written or printed: configs, YAML, the line that loads the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from converters.convert import main

RUN = "__import__('pathlib').Path('ran').touch()"  # what the names below try to run
NAMES = (
    "it's",
    'quote"d',
    f"',checkpoint={RUN}) #",
    f"'+str({RUN})+'",
    f'"+str({RUN})+"',
    f"\n{RUN}\n#",
    "\nX: !!python%2fobject%2fapply:os.mkdir [ran]\n#",
    "{{ fileDirname }}{{_base_.x}}{{$HOME:x}}",
    "back\\slash\\",
    "caf\u00e9 \U0001f600",
    "not utf-8 \udcff",
    "\x1b]0;title\x07\u202e",
)
# Converts and verifies in the framework's own process: every name as the file's and as the folder's.
SCRIPT = """
import json, os, sys
from pathlib import Path
from converters import conversion
target, suffix, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
from converters import verify
image = verify.photograph(32)
verify.photograph = lambda: image
for name in names:
    for path in (Path(f"n-{name}{suffix}"), Path(f"f-{name}") / f"x{suffix}"):
        path.parent.mkdir(exist_ok=True)
        loads = target != "detectron2" or "\\n" not in name  # detectron2 removes line breaks from a path
        done = conversion.convert("random:resnet18", target, str(path), check="yes" if loads else "no")
        assert path.is_file(), name
        lines = str(done).splitlines()
        assert all(line.isprintable() for line in lines), lines
        if target == "detectron2":
            from detectron2.config import get_cfg
            cfg = get_cfg()
        else:
            import mmengine
            cfg = mmengine.Config({})
        exec(lines[-1].removeprefix("use: "))
        found = cfg.MODEL.WEIGHTS if target == "detectron2" else cfg.init_cfg.checkpoint
        assert Path(found).samefile(path), found
        path.unlink()
        path.with_suffix({".pkl": ".yaml", ".pth": ".py"}[suffix]).unlink()
print(json.dumps(os.path.exists("ran")))
"""


@pytest.mark.fault("hostile files", "convert", "code in the name of a file or folder, --to detectron2, openmmlab")
@pytest.mark.parametrize(
    ("target", "suffix"), [("openmmlab", ".pth"), pytest.param("detectron2", ".pkl", marks=pytest.mark.nightly)]
)
def test_names_in_settings_are_data(target: str, suffix: str, tmp_path: Path) -> None:
    names = json.dumps(NAMES)
    command = [sys.executable, "-c", SCRIPT, target, suffix, names]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "false"


@pytest.mark.fault("hostile files", "convert", "code in the name of a file, --to torchvision, timm")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["torchvision", "timm"])
def test_the_printed_line_loads_any_name(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["random:resnet18", "--to", target, "--out", f"{name}.pth", "--verify", "no"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("use: ")
    exec(line, {"torch": torch, "torchvision": torchvision, "timm": timm})
    assert not Path("ran").exists()
