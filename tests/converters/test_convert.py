"""The command as users run it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from converters import convert as entry
from converters import targets
from converters.conversion import staging
from converters.convert import main
from converters.options import TARGETS
from tests.pages import CONVERTERS, documented

ROOT = Path(entry.__file__).parents[1]


def run(*args: object, module: bool = False, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    how = ["-m", "converters.convert"] if module else [str(ROOT / "converters/convert.py")]
    command = [sys.executable, *how, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_accounts_for_every_key(
    sample: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r18.pth"
    assert main([str(sample("MoCo v1")), "--to", "torchvision", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "moco format (facebookresearch/moco v1 and v2), query weights, resnet18, sha256" in output
    for row in ("read", "dropped, projection heads", "dropped, the key encoder", "dropped, queues", "written"):
        assert any(line.startswith(row) for line in output.splitlines()), output
    assert f"246 keys found, 120 read, 126 dropped on purpose, 120 tensors written to {out}" in output
    assert "verified: torchvision resnet18: 120 tensors equal (20 convolutions, 20 batch norms)" in output
    assert f'm.load_state_dict(torch.load("{out}"))' in output
    assert files_in(tmp_path) == {"r18.pth"}


def test_the_printed_line_loads_the_file(
    sample: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in ("torchvision", "timm"):
        suffix = {"torchvision": ".pth", "timm": ".safetensors"}[target]
        main([str(sample("MoCo v1")), "--to", target, "--out", str(tmp_path / f"x{suffix}"), "--verify", "no"])
        line = capsys.readouterr().out.splitlines()[-1].removeprefix("use: ")
        exec(line, {"torch": torch, "torchvision": torchvision, "timm": timm})


def test_the_documented_lines_load_the_files(
    sample: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint.pth").write_bytes(sample("MoCo v1", "resnet50").read_bytes())
    for target in ("torchvision", "timm"):
        assert main(["checkpoint.pth", "--to", target, "--verify", "no"]) == 0
    for package in ("converters", "timm"):
        exec(documented(package), {})


def test_every_option_is_documented() -> None:
    text = CONVERTERS.read_text()
    for action in entry.parser()._actions:
        for option in set(action.option_strings) - {"-h", "--help", "--to"}:
            assert f"| `{option}" in text, option


def test_the_default_output_is_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(torch.load(write_plain(tmp_path), weights_only=True), tmp_path / "ckpt_0199.pth.tar")
    (tmp_path / "plain.pth").unlink()
    assert main([str(tmp_path / "ckpt_0199.pth.tar"), "--to", "timm", "--verify", "no"]) == 0
    assert files_in(tmp_path) == {"ckpt_0199.pth.tar", "ckpt_0199.timm.safetensors"}
    monkeypatch.chdir(tmp_path)
    assert main(["random:resnet18?seed=1", "--to", "torchvision", "--verify", "no"]) == 0
    assert "random-resnet18-seed-1.torchvision.pth" in files_in(tmp_path)


def write_plain(folder: Path) -> Path:
    from converters import read_backbone

    torch.save(read_backbone("random:resnet18").tensors, folder / "plain.pth")
    return folder / "plain.pth"


def test_detectron2_and_openmmlab_settings_are_written_beside(sample: Callable[..., Path], tmp_path: Path) -> None:
    for target, names in (("detectron2", {"x.pkl", "x.yaml"}), ("openmmlab", {"x.pth", "x.py"})):
        folder = tmp_path / target
        folder.mkdir()
        suffix = {"detectron2": ".pkl", "openmmlab": ".pth"}[target]
        assert (
            main([str(sample("MoCo v1")), "--to", target, "--out", str(folder / f"x{suffix}"), "--verify", "no"]) == 0
        )
        assert files_in(folder) == names
    settings = (tmp_path / "detectron2/x.yaml").read_text()
    for line in (
        'FORMAT: "RGB"',
        "PIXEL_MEAN: [123.675, 116.28, 103.53]",
        "STRIDE_IN_1X1: False",
        "FREEZE_AT: 0",
        "DEPTH: 18",
    ):
        assert line in settings
    config = (tmp_path / "openmmlab/x.py").read_text()
    for part in (
        "style='pytorch'",
        "bgr_to_rgb=True",
        "type='ResLayer', depth=18, stage=3",
        'checkpoint=__folder + "/x.pth"',
    ):
        assert part in config


def test_equal_files_are_overwritten_and_different_ones_only_with_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--to", "timm", "--out", str(tmp_path / "x.safetensors"), "--verify", "no"]
    assert main(["random:resnet18?seed=1", *out]) == 0
    assert main(["random:resnet18?seed=1", *out]) == 0
    assert main(["random:resnet18?seed=2", *out]) == 2
    assert "x.safetensors exists and differs; --force overwrites it, --out names another" in capsys.readouterr().err
    assert main(["random:resnet18?seed=2", *out, "--force"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["CKPT", "--to", "caffe"], "invalid choice: 'caffe'"),
        (["CKPT"], "required: to"),
        ([], "required"),
        (["CKPT", "--to", "timm", "--form", "moco"], "form"),
        ([".", "--to", "timm"], ". is a directory, give one of its files: plain.pth"),
        (["nowhere.pth", "--to", "timm"], "nowhere.pth does not exist"),
        (["CKPT", "--to", "timm", "--from", "moc"], "invalid choice: 'moc'"),
        (["CKPT", "--to", "timm", "--out", "x.pkl"], "--out x.pkl: a timm file ends in .safetensors or .pth"),
        (["CKPT", "--to", "timm", "--out", "nowhere/x.pth"], "the folder nowhere does not exist"),
        (["CKPT", "--to", "torchvision", "--out", "CKPT"], "is the checkpoint itself; name another file"),
        (["CKPT", "--to", "timm", "--prefix", "backbone."], "--prefix backbone.: timm wants bare keys"),
        (["CKPT", "--to", "timm", "--weights", "key"], "read as torchvision has no key weights: --weights takes model"),
        (
            ["random:resnet18_cifar", "--to", "detectron2"],
            "detectron2 builds no resnet18_cifar: it has no layer for conv1.weight",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_plain(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([str(path) if arg == "CKPT" else arg for arg in args]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("convert.py: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert files_in(tmp_path) == {"plain.pth"}


def test_a_framework_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("converters.conversion.installed", lambda target: False)
    out = ["--to", "detectron2", "--out", str(tmp_path / "x.pkl")]
    assert main(["random:resnet18", *out, "--verify", "yes"]) == 2
    assert "--verify yes: detectron2 is not installed; bash setup.sh installs it" in capsys.readouterr().err
    assert main(["random:resnet18", *out]) == 0
    assert "not verified: detectron2 is not installed; bash setup.sh installs it" in capsys.readouterr().out


def test_a_file_that_fails_verification_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = targets.torch.save
    monkeypatch.setattr(targets.torch, "save", lambda c, f: write(c | {"bn1.bias": c["bn1.bias"] + 1}, f))
    assert main(["random:resnet18", "--to", "torchvision", "--out", str(tmp_path / "x.pth")]) == 1
    output = capsys.readouterr().err
    assert output.startswith("convert.py: not equal, nothing written: the built model does not hold random:resnet18")
    assert "1 different: bn1.bias" in output
    assert files_in(tmp_path) == set()


def write_staged(folder: Path, force: bool = False, fail: bool = False, **contents: str) -> None:
    with staging(folder, force) as part:
        for name, text in contents.items():
            (part / name).write_text(text)
        if fail:
            raise RuntimeError("midway")


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"):
        write_staged(tmp_path, fail=True, a="1")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").write_text("old")
    with pytest.raises(ValueError, match="b exists and differs; --force overwrites it"):
        write_staged(tmp_path, a="1", b="new")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    write_staged(tmp_path, b="old")
    write_staged(tmp_path, force=True, a="1", b="new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "1", "b": "new"}
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist"):
        write_staged(tmp_path / "nowhere")


def test_it_runs_as_a_script_and_as_a_module(tmp_path: Path) -> None:
    path = write_plain(tmp_path)
    done = run(path, "--to", "timm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified: timm resnet18: 120 tensors equal" in done.stdout
    assert done.stderr == ""
    done = run(path, module=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_help_explains_every_option() -> None:
    text = " ".join(entry.parser().format_help().split())
    for words in (
        "the framework to write for", "the file to write", "which weights", "the format of the checkpoint",
        "keys to leave out", "before every key", "compare tensors and features", "run any Python code",
        "overwrite files",
    ):  # fmt: skip
        assert words in text


def test_the_targets_of_the_options_are_those_there_are() -> None:
    assert tuple(targets.TARGETS) == TARGETS
