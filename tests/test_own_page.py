"""docs/own_data.md: its commands and its Python code, run one after the other as they stand, on a small data set.

Commands for detection and segmentation are run where their frameworks are: tests/transfer/{detectron2,mmseg}_own.py;
the comparison of checkpoints in tests/results/test_compare.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import scan
from converters import read_backbone
from results.record import read_all
from tests.pages import OWN_DATA, documented, own_data

CPU = ["--device=cpu", "--workers=0"]
# What makes a command take seconds, after the options on the page.
SMALL = {
    "pretrain/run.sh": [
        "--views.size=32", "--optim.epochs=1", "--optim.batch=32", "--optim.warmup=0", "--model.queue_size=64",
        "--device=cpu", "--data.workers=0",
    ],
    "transfer/knn.py": CPU, "transfer/linear.py": [*CPU, "--size=32", "--penalties=[0.1,1]"],
    "transfer/finetune.py": [
        *CPU, "--optim.batch=32", "--optim.epochs=1", "--optim.base_lr=[0.01]", "--optim.head_factor=[10]",
    ],
    "transfer/scenes.py": ["--train=3", "--val=2", "--size=64"],
    "converters/convert.py": ["--verify=no"], "results/tables.py": [],
}  # fmt: skip
ENTRIES = {"pretrain/run.sh": "pretrain.train"}


def write_image(path: Path, seed: int, colour: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 128, (32, 32, 3), dtype=np.uint8)
    pixels[..., colour] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all commands of the page were run, below which lies its /data."""
    root = tmp_path_factory.mktemp("site")
    for split, count in (("train", 110), ("val", 6)):
        for colour, name in enumerate(("robin", "wren")):
            for i in range(count):
                write_image(
                    root / "data" / "birds" / split / name / f"{i}.png", 1000 * len(split) + 2 * i + colour, colour
                )
    for i in range(12):
        write_image(root / "data" / "photos_without_labels" / f"{i}.png", i, 2)
    disc = np.hypot(*np.mgrid[-8:8, -8:8]) < 7
    for name in ("hammer", "saw"):
        (root / "data" / "tools" / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.dstack([np.full((16, 16, 3), 20 * i + len(name)), 255 * disc]).astype(np.uint8)
            Image.fromarray(pixels).save(root / "data" / "tools" / name / f"{name}{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(scan, "CACHE", root / "checks")
        for script, words in own_data(*SMALL, root=root):
            name = ENTRIES.get(script, script.removesuffix(".py").replace("/", "."))
            status = importlib.import_module(name).main([*words, *SMALL[script]])
            assert status == 0, (script, words)
        yield root


def test_every_command_of_the_page_is_run(site: Path) -> None:
    elsewhere = {
        "transfer/detect.py", "transfer/segment.py", "transfer/compare.sh", "tests/benchmarks/real_sets.py",
    }  # fmt: skip
    shown = set(re.findall(r"^(?:bash|python) (\S+)", OWN_DATA.read_text(), re.MULTILINE))
    assert shown - elsewhere == set(SMALL)
    assert {path.name for path in (site / "runs").iterdir()} >= {"birds", "birds_longer", "records", "tables"}
    assert {record.task for record in read_all(site / "runs" / "records")} == {"knn", "linear", "finetune"}
    assert re.search(
        r"random initialisation.* mine |mine .*random initialisation",
        (site / "runs" / "tables" / "verdicts.md").read_text(),
    )
    measured = [words for _, words in own_data("transfer/linear.py", root=site)]
    assert len({" ".join(words).partition("--data")[2] for words in measured}) == 1, "compared with the same options"


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_the_code_for_a_classifier_loads_the_file(package: str, site: Path) -> None:
    target = {"timm": "timm.safetensors", "torchvision": "torchvision.pth"}[package]
    assert (site / "runs" / "birds" / f"last.{target}").is_file() or package == "torchvision"
    if package == "torchvision":
        importlib.import_module("converters.convert").main(["runs/birds/last.pth", "--to", package, "--verify", "no"])
    found: dict[str, torch.nn.Module] = {}
    exec(documented(package, OWN_DATA), found)
    state = found["model"].state_dict()
    wanted = read_backbone("runs/birds/last.pth").tensors
    assert not [name for name, tensor in wanted.items() if not torch.equal(state[name], tensor)]
    assert state.keys() - wanted.keys() - {n for n in state if n.endswith("num_batches_tracked")} == {
        "fc.weight", "fc.bias",
    }  # fmt: skip
    assert state["fc.weight"].shape == (20, 512)


def test_the_code_with_the_benchmarks_reads_what_is_on_record(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = documented("transfer", OWN_DATA).replace("/data/", f"{site}/data/")
    found: dict[str, object] = {}
    exec(code, found)
    assert [record.task for record in found["records"]] == ["knn", "linear"]  # type: ignore[attr-defined]
    assert "knn" in capsys.readouterr().out
    assert found["network"](torch.zeros(1, 3, 32, 32)).shape == (1, 512)  # type: ignore[operator]
