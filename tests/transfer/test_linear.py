"""Linear classification: heads against plain loops, the command as users call it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.features import FeatureExtractor
from common.images import load_images
from common.loaders import GlobalBatches, OneView
from tests.common.gloo import run_two
from tests.transfer.garments import ROOT, arguments, per_image, recorded, write_garments
from transfer import linear
from transfer.benchmark import read_checkpoint
from transfer.classification import linear_probe
from transfer.classification.heads import metrics_of, new_head, save_head
from transfer.classification.linear_probe import heads_optimizer, step_heads, train_heads
from transfer.classification.schedules import CropConfig, HeadOptim
from transfer.classification.training import Setting
from transfer.linear import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


OPTIM = HeadOptim(base_lr=[0.5, 2.0], weight_decay=[0.0, 0.01], batch=16, epochs=2)


def setting(folder: Path) -> Setting:
    return Setting(folder, seed=3, device=CPU, dtype=None, size=32, workers=0)


def train(garments: str, to: str, optim: HeadOptim = OPTIM) -> list[Tensor]:
    """Return the weights of heads trained on the garments' features."""
    network = read_checkpoint("random:resnet18", 0).build()
    images = load_images([f"{garments}/train"])
    heads = train_heads(network, 512, images, optim, CropConfig((0.5, 1.0)), setting(Path(to)))
    return [head.weight.detach() for head in heads]


class TestHeads:
    def test_heads_trained_together_equal_heads_trained_alone(self, garments: Path, tmp_path: Path) -> None:
        together = train(str(garments), str(tmp_path / "all"))
        for (lr, decay), head in zip(OPTIM.heads, together, strict=True):
            one = dataclasses.replace(OPTIM, base_lr=[lr], weight_decay=[decay])
            (alone,) = train(str(garments), str(tmp_path / f"{lr}{decay}"), one)
            torch.testing.assert_close(head, alone, rtol=1e-5, atol=1e-6)
        assert len({float(head.norm()) for head in together}) == 4

    def test_a_head_equals_a_plain_loop_of_sgd(self, garments: Path, tmp_path: Path) -> None:
        optim = HeadOptim(base_lr=[2.0], weight_decay=[0.01], batch=16, epochs=3, milestones=[0.5], factor=0.1)
        (ours,) = train(str(garments), str(tmp_path), optim)
        images, network = load_images([f"{garments}/train"]), read_checkpoint("random:resnet18", 0).build()
        views = OneView(images, images.labels, CropConfig((0.5, 1.0)).view(32), seed=3)
        head = new_head(512, 2, seed=3)
        optimizer = torch.optim.SGD(head.parameters(), 2.0 * 16 / 256, momentum=0.9, weight_decay=0.01)
        for step, keys in enumerate(GlobalBatches(40, 16, 3, 0, 6)):
            if step // 2 >= 2:  # epochs 0 and 1 end before half of 3
                optimizer.param_groups[0]["lr"] = 0.1 * 2.0 * 16 / 256
            batch = views.__getitems__(keys)
            with FeatureExtractor(network, CPU) as run:
                features = run(batch.q)
            optimizer.zero_grad()
            F.cross_entropy(head(features), batch.labels).backward()
            optimizer.step()
        torch.testing.assert_close(ours, head.weight.detach(), rtol=1e-4, atol=1e-6)

    def test_a_head_equals_a_plain_loop_of_lars(self) -> None:
        """arXiv 1708.03888, as SimSiam runs it: a tensor's step is scaled by 0.001 |w| / (|g| + decay |w|)."""
        optim = HeadOptim(optimizer="lars", base_lr=[20.0], weight_decay=[0.01], batch=256)
        heads = nn.ModuleList([new_head(6, 3, seed=0)])
        optimizer = heads_optimizer(heads, optim)
        weights = [p.detach().clone().double() for p in heads.parameters()]
        momenta = [torch.zeros_like(w) for w in weights]
        g = torch.Generator().manual_seed(1)
        for _ in range(4):
            features, labels = torch.randn(16, 6, generator=g), torch.randint(3, (16,), generator=g)
            step_heads(heads, optimizer, features, labels)
            leaves = [w.clone().requires_grad_() for w in weights]
            loss = F.cross_entropy(features.double() @ leaves[0].T + leaves[1], labels)
            for w, momentum, gradient in zip(weights, momenta, torch.autograd.grad(loss, leaves), strict=True):
                size, slope = w.norm(), gradient.norm()
                trust = 0.001 * size / (slope + 0.01 * size) if size > 0 and slope > 0 else 1.0  # the bias starts at 0
                momentum.mul_(0.9).add_(trust * (gradient + 0.01 * w))
                w.sub_(20.0 * momentum)
        for ours, theirs in zip(heads.parameters(), weights, strict=True):
            torch.testing.assert_close(ours.detach().double(), theirs, rtol=1e-4, atol=1e-6)

    @pytest.mark.ddp
    def test_two_processes_give_the_heads_of_one(self, garments: Path, tmp_path: Path) -> None:
        alone = train(str(garments), str(tmp_path / "one"))
        for heads in run_two(train, str(garments), str(tmp_path / "two")):
            for ours, theirs in zip(heads, alone, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def test_scores_are_counts(self) -> None:
        ranked = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 1, 2, 3, 4], [2, 1, 0, 3, 5]])
        labels = torch.tensor([0, 0, 5, 5])
        found = metrics_of(ranked, labels, list("abcdef"))
        assert found["top1"] == 0.5
        assert found["top5"] == 1.0
        assert (found["top1 a"], found["top1 f"]) == (0.5, 0.5)
        assert "top1 b" not in found  # no test image
        assert found["mean_per_class"] == 0.5


# The command


@pytest.mark.parametrize(
    "mode", [["cached"], ["moco", "--optim.base_lr=[1]"], ["sweep", "--optim.base_lr=[0.001,1]"], ["lars"]]
)
def test_each_mode_learns_and_writes_a_record_and_its_files(mode: list[str], garments: Path, tmp_path: Path) -> None:
    name, *rates = mode
    short = [] if name == "cached" else ["--optim.epochs=4", "--optim.batch=12", "--crop.scale=[0.5,1.0]", *rates]
    assert main([*arguments(garments, tmp_path, mode=name, pictures="true"), *short]) == 0
    (record,) = recorded(tmp_path)
    assert record.task == "linear"
    assert record.config["mode"] == name
    assert record.title.startswith(f"linear, {name}: ")
    # Four held-out images are few for the sweep to choose on. The rate of LARS is for thousands of images, it learns
    # nothing here; its step is compared with a plain loop above.
    assert record.metrics["top1"] >= {"lars": 0.0, "sweep": 0.7}.get(name, 0.9)
    assert per_image(tmp_path, record)["top1"].mean() == record.metrics["top1"]
    assert record.metrics["mean_per_class"] == pytest.approx((record.metrics["top1 1"] + record.metrics["top1 8"]) / 2)
    (folder,) = (tmp_path / "out").glob(f"random-*/linear/{name}-*/seed0")
    assert {path.name for path in folder.iterdir()} == {"head.pth", "per_class.csv", "confusion.png", "features.png"}
    assert pd.read_csv(folder / "per_class.csv")["top1"].tolist() == [
        record.metrics["top1 1"],
        record.metrics["top1 8"],
    ]


def test_each_seed_is_a_run_and_a_recorded_run_is_not_measured_again(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(garments, tmp_path, ckpt="random")
    assert main([*given, "--seeds", "0", "1"]) == 0
    assert "std (n = 2)" in capsys.readouterr().out
    one, two = recorded(tmp_path)
    assert one.path != two.path
    assert one.backbone["sha256"] != two.backbone["sha256"]  # another initialisation
    assert main([*given, "--seeds", "0", "1"]) == 0
    assert "on record" in capsys.readouterr().out
    assert len(recorded(tmp_path)) == 2


def test_a_backbone_that_changed_is_one_line(
    garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One BN statistic by the smallest step: training would do so if the backbone were not in evaluation mode."""
    real = linear_probe.train_heads

    def careless(network: nn.Module, *rest: Any) -> list[nn.Linear]:
        heads = real(network, *rest)
        statistic = network.layer3[0].bn1.running_mean  # type: ignore[union-attr,index]
        statistic[0] = torch.nextafter(statistic[0], torch.tensor(torch.inf))
        return heads

    monkeypatch.setattr(linear_probe, "train_heads", careless)
    given = [*arguments(garments, tmp_path, mode="moco"), "--optim.epochs=1", "--optim.batch=16"]
    assert main(given) == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert error.startswith("linear: error: ")  # a VerificationError
    assert "layer3.0.bn1.running_mean" in error
    assert not recorded(tmp_path)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bits(garments: Path, tmp_path: Path) -> None:
    def given(to: Path) -> list[str]:
        return [*arguments(garments, to, mode="moco"), "--optim.epochs=40", "--optim.batch=20", "--optim.base_lr=[1]"]

    assert main(given(tmp_path / "whole")) == 0
    command = [sys.executable, "-m", "transfer.linear", *given(tmp_path / "cut")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    while not list((tmp_path / "cut").rglob("state.pth")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = (tmp_path / "cut").rglob("state.pth")
    assert 0 < torch.load(state, weights_only=True)["epoch"] < 40
    assert main([*given(tmp_path / "cut"), "--resume"]) == 0
    heads = [next((tmp_path / name).rglob("head.pth")) for name in ("whole", "cut")]
    whole, cut = (torch.load(head, weights_only=True) for head in heads)
    torch.testing.assert_close(whole["weight"], cut["weight"], rtol=1e-5, atol=1e-6)  # threads may share work otherwise
    assert not list((tmp_path / "cut").rglob("state.pth"))
    whole_run, cut_run = (recorded(tmp_path / name)[0] for name in ("whole", "cut"))
    assert "seconds_before_resuming" not in whole_run.cost
    assert cut_run.cost["seconds_before_resuming"] > 0
    assert cut_run.metrics == whole_run.metrics


def test_a_head_may_start_from_another_run(garments: Path, tmp_path: Path) -> None:
    assert main(arguments(garments, tmp_path)) == 0
    (head,) = (tmp_path / "out").rglob("head.pth")
    still = ["--mode=moco", "--optim.epochs=1", "--optim.batch=20", "--optim.base_lr=[1e-9]", f"--head={head}"]
    assert main([*arguments(garments, tmp_path), *still]) == 0
    cached, started = sorted(recorded(tmp_path), key=lambda record: record.config["mode"])
    assert started.metrics == cached.metrics
    assert f", head from {head};" in started.title
    # Its content identifies it, wherever the file is.
    head.rename(tmp_path / "moved.pth")
    assert main([*arguments(garments, tmp_path), *still[:-1], f"--head={tmp_path}/moved.pth"]) == 0
    assert len(recorded(tmp_path)) == 2
    content = torch.load(tmp_path / "moved.pth", weights_only=True)
    torch.save(content | {"bias": content["bias"] + 1}, tmp_path / "moved.pth")
    assert main([*arguments(garments, tmp_path), *still[:-1], f"--head={tmp_path}/moved.pth"]) == 0
    assert len(recorded(tmp_path)) == 3


def test_a_list_of_labels_is_identified_by_its_content(garments: Path, tmp_path: Path) -> None:
    names = [f"{path.parent.name}/{path.name}\n" for path in sorted(garments.glob("train/*/*"))]
    for folder, chosen in (("a", names[::2]), ("b", names[::2]), ("c", names[1::2])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some.txt").write_text("".join(chosen))
        given = [f"--labels.list={tmp_path}/{folder}/some.txt", "--penalties=[0.01]"]
        assert main([*arguments(garments, tmp_path), *given]) == 0
    one, other = recorded(tmp_path)  # a and b hold the same
    assert one.config["labels"].keys() == {"ratio", "seed", "list", "list_sha256", "images"}
    assert one.config["labels"]["list_sha256"] != other.config["labels"]["list_sha256"]
    assert ", labels of some.txt (20 images);" in one.title


def test_one_penalty_holds_nothing_out(garments: Path, tmp_path: Path) -> None:
    assert main([*arguments(garments, tmp_path), "--labels.ratio=0.1", "--penalties=[0.001]"]) == 0
    (record,) = recorded(tmp_path)
    assert "penalty 0.001, 0.1 of the labels;" in record.title


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--mode=sweep"], "SGD, base lr 0.1/0.3/1/3/10/30/60, weight decay 0/1e-06, 30 epochs, cosine, batch 256, "),
        (["--mode=sweep"], "best of 14 heads on a held-out tenth of train, fitted on 90 % of train;"),
        (["--mode=moco", "--optim.momentum=0.5"], "batch 256, momentum 0.5, random crops"),
        (["--mode=moco", "--optim.weight_decay=[0.1]"], "base lr 30, weight decay 0.1, 100 epochs"),
        (["--mode=moco", "--labels.ratio=0.3", "--labels.seed=2"], "last epoch, 0.3 of the labels (seed 2);"),
    ],
)
def test_the_title_names_options_other_than_the_defaults(given: list[str], shown: str) -> None:
    ours, usual = (
        linear_probe.plan(linear.parse(["--ckpt=random", "--size=32", *options]), 0, CPU).title
        for options in (given, ["--mode=moco"])
    )
    assert shown in ours
    assert usual == (
        "linear, moco: SGD, base lr 30, 100 epochs, ×0.1 at 60/80, batch 256, random crops of 0.08 to 1 of the area, "
        "flip 0.5, last epoch; train fashion:train, test fashion:test; pooled features, centre view of 32 px in "
        "the test, float32"
    )


def test_a_diverging_head_is_one_line(garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--mode=moco", "--optim.epochs=2", "--optim.batch=20", "--optim.base_lr=[1e38]"]
    assert main([*arguments(garments, tmp_path), *given]) == 2
    assert "the loss is not finite in epoch 1" in capsys.readouterr().err


def other_head(path: Path, arch: str, classes: list[str], seed: int = 0) -> Path:
    backbone = read_checkpoint(f"random:{arch}", seed)
    save_head(path, nn.Linear(backbone.feature_dim, len(classes)), classes, backbone)
    return path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--mode=moco", "--head=HERE/r34.pth"], "made on a resnet34, the checkpoint is a resnet18"),
        (["--mode=moco", "--head=HERE/cats.pth"], "made for 2 classes, the data have 2: they differ in 1, 8, cat, dog"),
        (["--mode=moco", "--head=HERE/turned.pth"], "they come in another order"),
        (["--mode=moco", "--head=HERE/seed1.pth"], "trained on the features of the checkpoint with sha256 "),
        (["--head=HERE/turned.pth"], "use another mode"),
        (["--recipe=imagenet_linear_moco"], "--data is missing: recipe imagenet_linear_moco needs ImageNet's folder"),
        (["--mode=moco", "--head=HERE/none.pth"], "no such file"),
        (["--mode=moco", "--head=HERE/map.txt"], "not a head of transfer/linear.py"),
        (["--classes=HERE/map.txt"], "label '8' is not in the class map"),
        (["--classes=HERE/more.txt"], "no labelled training image of class 'shoe'"),
        (["--test=HERE/strange"], "class 'strange' is none of the 2 classes"),
        (["--data=GARMENTS/train", "--test=GARMENTS/train/"], "these are the training images; give others"),
        (["--test=HERE/flat.tsv"], "1 of 1 test images have no label"),
        (["--labels.list=HERE/one.txt"], "no labelled training image of class '8'"),
        (["--labels.ratio=0.05"], "too few to hold out"),
        (["--penalties=[]"], "one or more numbers"),
        (["--mode=moco"], "40 training images do not fill a batch; use --optim.batch 40"),
        (["--mode=moco", "--optim.batch=20", "--optim.base_lr=[0]"], "optim.base_lr=[0.0]"),
        (["--mode=moco", "--optim.batch=20", "--crop.scale=[0.5,2]"], "views.scale=(0.5, 2.0)"),
        (["--mode=adam"], "invalid choice"),
        (["--mode=moco", "--optim.base_lr=3"], "one as '[a]'"),
        (["--optim.lr=3"], "--optim.lr: unknown option; did you mean --optim."),
        (["--penaltys=[1]"], "--penaltys: unknown option; did you mean --penalties?"),
        (["--recipe=HERE/typo.yaml"], "typo.yaml: optim.bach: unknown option; did you mean --optim.batch?"),
    ],
)
def test_a_mistake_is_one_line(
    wrong: list[str], message: str, garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    write_garments(here / "other", train=1, test=1)
    picture = next((here / "other" / "test" / "1").iterdir())
    (here / "strange" / "strange").mkdir(parents=True)
    picture.rename(here / "strange" / "strange" / "1.png")
    (here / "flat.tsv").write_text("strange/strange/1.png\t\n")
    (here / "map.txt").write_text("1\n")
    (here / "typo.yaml").write_text("optim:\n  bach: 20\n")
    (here / "more.txt").write_text("1\n8\nshoe\n")
    (here / "one.txt").write_text("".join(f"1/{path.name}\n" for path in (garments / "train" / "1").iterdir()))
    other_head(here / "r34.pth", "resnet34", ["1", "8"])
    other_head(here / "cats.pth", "resnet18", ["cat", "dog"])
    other_head(here / "turned.pth", "resnet18", ["8", "1"])
    other_head(here / "seed1.pth", "resnet18", ["1", "8"], seed=1)
    given = [word.replace("HERE", str(here)).replace("GARMENTS", str(garments)) for word in wrong]
    kept = [word for word in arguments(garments, tmp_path) if "needs" not in message or "--data" not in word]
    assert main([*kept, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not recorded(tmp_path)
