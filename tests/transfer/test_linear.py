"""Linear classification: the solver against scikit-learn, heads against plain loops, the command as users call it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.data import GlobalBatches
from pretrain.images import load_images
from pretrain.knn import Cores, Trunk
from results.record import read
from tests.pretrain.gloo import run_two
from tests.transfer.garments import ROOT, arguments, write_garments
from transfer import linear
from transfer.classification import logistic
from transfer.classification.data import OneView
from transfer.classification.heads import new_head, predict, save_head, scores
from transfer.classification.loop import Work
from transfer.classification.online import HeadOptim, train_heads
from transfer.classification.schedule import CropConfig
from transfer.common import read_checkpoint
from transfer.linear import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"))


def clusters(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(count, 7) features of unlike mean and spread around 4 overlapping centres; labels."""
    centres = torch.randn(4, 7, generator=torch.Generator().manual_seed(9))
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    x = centres[labels] + 1.2 * torch.randn(count, 7, generator=g)
    return x * torch.tensor([0.01, 1, 1, 3, 100, 1, 1]) + torch.tensor([0.0, 5, 0, 0, 300, 0, 0]), labels


class TestLogisticRegression:
    @pytest.mark.parametrize("penalty", [1e-3, 0.1])
    def test_equals_scikit_learn(self, penalty: float) -> None:
        x, y = clusters(400)
        problem = logistic.Problem(x, y, torch.ones(400, dtype=torch.bool), 4, CPU)
        problem.solve(penalty, steps=500, tolerance=1e-7)
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (penalty * 400), tol=1e-10, max_iter=5000))
        theirs.fit(x.double().numpy(), y.numpy())
        new, _ = clusters(200, seed=1)
        ours = problem.head()(new).softmax(1).detach()
        np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(new.double().numpy()), atol=2e-3)
        weights = theirs[1].coef_ - theirs[1].coef_.mean(0)
        np.testing.assert_allclose(problem.weight.detach().numpy(), weights, rtol=0.02, atol=2e-3)

    def test_the_gradient_is_autograds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logistic, "CHUNK", 64)  # several chunks, the last one short
        x, y = clusters(150)
        counts = torch.arange(150) % 3 > 0
        problem = logistic.Problem(x, y, counts, 4, CPU)
        with torch.no_grad():
            problem.weight.copy_(torch.randn(4, 7, generator=torch.Generator().manual_seed(2)))
            problem.bias.copy_(torch.arange(4.0))
        with Cores(CPU) as cores:
            value = problem.loss(0.3, cores)
        weight, bias = (p.detach().double().requires_grad_() for p in (problem.weight, problem.bias))
        used = x[counts].double()
        standard = (used - used.mean(0)) / used.std(0, correction=0)
        plain = F.cross_entropy(standard @ weight.T + bias, y[counts]) + 0.15 * weight.square().sum()
        plain.backward()
        assert value.item() == pytest.approx(plain.item(), rel=1e-4)
        torch.testing.assert_close(problem.weight.grad.double(), weight.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(problem.bias.grad.double(), bias.grad, rtol=1e-3, atol=1e-3)

    def test_images_that_do_not_count_change_nothing(self) -> None:
        x, y = clusters(300)
        counts = torch.arange(300) < 200
        x[200:] = 1e4
        weights = []
        for features, labels, which in ((x, y, counts), (x[:200], y[:200], counts[:200])):
            problem = logistic.Problem(features, labels, which, 4, CPU)
            problem.solve(0.01, steps=300, tolerance=1e-6)
            weights.append(problem.weight.detach())
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-2, atol=1e-3)

    def test_a_feature_that_never_changes_is_harmless(self) -> None:
        x, y = clusters(200)
        x[:, 2] = 3.0
        problem = logistic.Problem(x, y, torch.ones(200, dtype=torch.bool), 4, CPU)
        problem.solve(0.01)
        assert torch.isfinite(problem.head()(x)).all()

    def test_the_penalty_is_that_which_held_out_images_like_best(self) -> None:
        """Noise dimensions: without a penalty 120 images in 80 dimensions are learnt by heart."""
        g = torch.Generator().manual_seed(3)
        y = torch.arange(520) % 2
        x = torch.randn(520, 80, generator=g)
        x[:, 0] += 2.5 * y
        held = torch.arange(120, 520)
        head, best, tried = logistic.fit(x, y, 2, held, CPU, [1e-6, 1e-1, 1.0], lambda _: None)
        assert tried.keys() == {1e-6, 1e-1, 1.0}
        assert tried[best] == max(tried.values()) > tried[1e-6]
        alone, same, none = logistic.fit(x, y, 2, held, CPU, [best], lambda _: None)
        assert (same, none) == (best, {})
        assert float((head.weight - alone.weight).norm() / alone.weight.norm()) < 0.05  # all images, that penalty

    def test_many_classes_are_fitted_as_well_as_few(self) -> None:
        """`fit` as it is called, against scikit-learn at its minimum: with 200 classes slopes are small at once."""
        classes, penalty = 200, 1e-3
        g = torch.Generator().manual_seed(4)
        centres = torch.randn(classes, 32, generator=g)
        y = torch.arange(20 * classes) % classes
        x, new = (centres[y] + 1.5 * torch.randn(len(y), 32, generator=g) for _ in range(2))
        head, *_ = logistic.fit(x, y, classes, torch.arange(10), CPU, [penalty], lambda _: None)
        scaler = StandardScaler().fit(x.double().numpy())
        theirs = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-6, max_iter=2000)
        theirs.fit(scaler.transform(x.double().numpy()), y.numpy())
        accuracy = float((predict(head, new, 1)[:, 0] == y).double().mean())
        assert accuracy > 0.5
        assert accuracy == pytest.approx(theirs.score(scaler.transform(new.double().numpy()), y.numpy()), abs=0.003)

        def objective(weight: Tensor, bias: Tensor) -> float:
            logits = torch.from_numpy(scaler.transform(x.double().numpy())) @ weight.T + bias
            return float(F.cross_entropy(logits, y) + penalty / 2 * weight.square().sum())

        raw = head.weight.detach().double()
        mean, spread = torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_)
        ours = objective(raw * spread, head.bias.detach().double() + raw @ mean)
        assert ours == pytest.approx(
            objective(torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)), rel=1e-3
        )

    def test_what_did_not_converge_and_what_may_lie_beyond_the_list_is_said(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        y = (torch.arange(400) % 5 == 0).long()  # of few and far ones, which a large penalty gives up
        x = y[:, None] + 0.1 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        said: list[str] = []
        logistic.fit(x, y, 2, torch.arange(40), CPU, [0.01, 100.0], said.append)
        assert "penalty 0.01 is the smallest of --penalties: a smaller one may be better, e.g. 0.001" in said
        logistic.fit(x, y, 2, torch.arange(40), CPU, [0.001, 0.01], said.append)
        assert "penalty 0.01 is the largest of --penalties: a larger one may be better, e.g. 0.1" in said
        assert "converged" not in "".join(said)
        monkeypatch.setattr(logistic.Problem.solve, "__defaults__", (1e-3, 1))  # one step
        logistic.fit(x, y, 2, torch.arange(40), CPU, [1e-4], said.append)
        assert said[-1].startswith("penalty 0.0001: not converged after ")

    def test_half_precision_features_are_read_as_they_are(self) -> None:
        x, y = clusters(200)
        heads = [
            logistic.fit(x.to(dtype), y, 4, torch.arange(20), CPU, [0.01], lambda _: None)[0]
            for dtype in (torch.float32, torch.float16)
        ]
        agree = predict(heads[0], x, 1) == predict(heads[1], x.half(), 1)
        assert agree.double().mean() > 0.97


OPTIM = HeadOptim(base_lr=[0.5, 2.0], weight_decay=[0.0, 0.01], batch=16, epochs=2)


def work(folder: Path) -> Work:
    return Work(folder, seed=3, device=CPU, dtype=None, size=32, workers=0)


def train(garments: str, to: str, optim: HeadOptim = OPTIM) -> list[Tensor]:
    """Weights of the heads trained on the garments' features."""
    network = read_checkpoint("random:resnet18", 0).build()
    images = load_images([f"{garments}/train"])
    heads = train_heads(network, 512, images, optim, CropConfig((0.5, 1.0)), work(Path(to)))
    return [head.weight.detach() for head in heads]


class TestHeads:
    def test_trained_together_they_are_what_they_are_alone(self, garments: Path, tmp_path: Path) -> None:
        together = train(str(garments), str(tmp_path / "all"))
        for (lr, decay), head in zip(OPTIM.heads, together, strict=True):
            one = dataclasses.replace(OPTIM, base_lr=[lr], weight_decay=[decay])
            (alone,) = train(str(garments), str(tmp_path / f"{lr}{decay}"), one)
            torch.testing.assert_close(head, alone, rtol=1e-5, atol=1e-6)
        assert len({float(head.norm()) for head in together}) == 4

    def test_a_head_is_a_plain_loop_of_sgd(self, garments: Path, tmp_path: Path) -> None:
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
            with Trunk(network, CPU) as trunk:
                features = trunk(batch.q)
            optimizer.zero_grad()
            F.cross_entropy(head(features), batch.labels).backward()
            optimizer.step()
        torch.testing.assert_close(ours, head.weight.detach(), rtol=1e-4, atol=1e-6)

    @pytest.mark.ddp
    def test_two_processes_give_the_heads_of_one(self, garments: Path, tmp_path: Path) -> None:
        alone = train(str(garments), str(tmp_path / "one"))
        for heads in run_two(train, str(garments), str(tmp_path / "two")):
            for ours, theirs in zip(heads, alone, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def test_scores_are_counts(self) -> None:
        ranked = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 1, 2, 3, 4], [2, 1, 0, 3, 5]])
        labels = torch.tensor([0, 0, 5, 5])
        found = scores(ranked, labels, list("abcdef"))
        assert found["top1"] == 0.5
        assert found["top5"] == 1.0
        assert (found["top1 a"], found["top1 f"]) == (0.5, 0.5)
        assert "top1 b" not in found  # no test image
        assert found["mean_per_class"] == 0.5


# The command


@pytest.mark.parametrize(
    "mode", [["cached"], ["moco", "--optim.base_lr=[1]"], ["sweep", "--optim.base_lr=[0.001,1]"], ["lars"]]
)
def test_each_mode_learns_measures_and_leaves_its_files(mode: list[str], garments: Path, tmp_path: Path) -> None:
    name, *rates = mode
    short = [] if name == "cached" else ["--optim.epochs=4", "--optim.batch=12", "--crop.scale=[0.5,1.0]", *rates]
    assert main([*arguments(garments, tmp_path, mode=name, pictures="true"), *short]) == 0
    (record,) = read(tmp_path / "records.jsonl")
    assert record.task == "linear"
    assert record.config["mode"] == name
    assert record.protocol.startswith(f"linear, {name}: ")
    # The rate of LARS is for thousands of images, and four held-out images are few for the sweep to choose on.
    assert record.metrics["top1"] >= {"lars": 0.4, "sweep": 0.7}.get(name, 0.9)
    assert record.metrics["mean_per_class"] == pytest.approx((record.metrics["top1 1"] + record.metrics["top1 8"]) / 2)
    (folder,) = (tmp_path / "out").glob(f"random-*/linear/{name}-*/seed0")
    assert {path.name for path in folder.iterdir()} == {"head.pth", "per_class.csv", "confusion.png", "features.png"}
    assert pd.read_csv(folder / "per_class.csv")["top1"].tolist() == [
        record.metrics["top1 1"],
        record.metrics["top1 8"],
    ]


def test_seeds_are_runs_and_what_is_on_record_is_not_measured_again(
    garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(garments, tmp_path, ckpt="random")
    assert main([*given, "--seeds", "0", "1"]) == 0
    assert "std (n = 2)" in capsys.readouterr().out
    one, two = read(tmp_path / "records.jsonl")
    assert one.checkpoint["sha256"] != two.checkpoint["sha256"]  # another initialisation
    assert main([*given, "--seeds", "0", "1"]) == 0
    assert "on record" in capsys.readouterr().out
    assert len(read(tmp_path / "records.jsonl")) == 2


def test_a_trunk_that_changed_is_found(
    garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One BN statistic by the smallest step: training would do so if the trunk were not in evaluation mode."""
    real = linear.train_heads

    def careless(network: nn.Module, *rest: Any) -> list[nn.Linear]:
        heads = real(network, *rest)
        statistic = network.layer3[0].bn1.running_mean  # type: ignore[union-attr,index]
        statistic[0] = torch.nextafter(statistic[0], torch.tensor(torch.inf))
        return heads

    monkeypatch.setattr(linear, "train_heads", careless)
    given = [*arguments(garments, tmp_path, mode="moco"), "--optim.epochs=1", "--optim.batch=16"]
    assert main(given) == 2
    assert "layer3.0.bn1.running_mean" in capsys.readouterr().err
    assert not (tmp_path / "records.jsonl").exists()


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
    whole_run, cut_run = (read(tmp_path / name / "records.jsonl")[0] for name in ("whole", "cut"))
    assert "seconds_before_resuming" not in whole_run.cost
    assert cut_run.cost["seconds_before_resuming"] > 0
    assert cut_run.metrics == whole_run.metrics


def test_a_head_may_start_from_another_run(garments: Path, tmp_path: Path) -> None:
    assert main(arguments(garments, tmp_path)) == 0
    (head,) = (tmp_path / "out").rglob("head.pth")
    still = ["--mode=moco", "--optim.epochs=1", "--optim.batch=20", "--optim.base_lr=[1e-9]", f"--head={head}"]
    assert main([*arguments(garments, tmp_path), *still]) == 0
    cached, started = read(tmp_path / "records.jsonl")
    assert started.metrics == cached.metrics


def test_a_diverging_head_is_told(garments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--mode=moco", "--optim.epochs=2", "--optim.batch=20", "--optim.base_lr=[1e38]"]
    assert main([*arguments(garments, tmp_path), *given]) == 2
    assert "the loss is not finite in epoch 1" in capsys.readouterr().err


def other_head(path: Path, arch: str, classes: list[str]) -> Path:
    backbone = read_checkpoint(f"random:{arch}", 0)
    save_head(path, nn.Linear(backbone.feature_dim, len(classes)), classes, backbone)
    return path


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--mode=moco", "--head=HERE/r34.pth"], "made on a resnet34, the checkpoint is a resnet18"),
        (["--mode=moco", "--head=HERE/cats.pth"], "made for 2 classes, the data have 2: they differ in 1, 8, cat, dog"),
        (["--mode=moco", "--head=HERE/turned.pth"], "they come in another order"),
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
        (["--optim.lr=3"], "--optim.lr"),
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
    (here / "more.txt").write_text("1\n8\nshoe\n")
    (here / "one.txt").write_text("".join(f"1/{path.name}\n" for path in (garments / "train" / "1").iterdir()))
    other_head(here / "r34.pth", "resnet34", ["1", "8"])
    other_head(here / "cats.pth", "resnet18", ["cat", "dog"])
    other_head(here / "turned.pth", "resnet18", ["8", "1"])
    given = [word.replace("HERE", str(here)).replace("GARMENTS", str(garments)) for word in wrong]
    assert main([*arguments(garments, tmp_path), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "records.jsonl").exists()
