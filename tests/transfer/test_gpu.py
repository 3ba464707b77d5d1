"""The benchmarks on a real GPU against the CPU. Without a GPU nothing runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from common.knn import knn_predict
from tests.transfer.garments import arguments, recorded, write_garments
from tests.transfer.test_logistic import clusters
from transfer import finetune, knn, linear, svm
from transfer.classification.logistic import Problem

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or "NULL_GPU" in os.environ, reason="needs a GPU that computes"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COMMANDS = {
    "knn": (knn.main, {"k": "[5]"}),
    "linear": (linear.main, {"mode": "cached"}),
    "svm": (svm.main, {"costs": "[1.0]"}),
}


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"), train=40, test=40)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_records_the_figures_of_the_cpu(name: str, garments: Path, tmp_path: Path) -> None:
    """Of 80 test images of two classes that are easily told apart at most two may fall on the other side."""
    main, options = COMMANDS[name]
    figures = {}
    for device in ("cpu", "cuda"):
        assert main(arguments(garments, tmp_path / device, device=device, **options)) == 0
        (record,) = recorded(tmp_path / device)
        figures[device] = record.metrics
        assert (record.environment["device"] == torch.cuda.get_device_name(0)) == (device == "cuda")
    assert figures["cpu"].keys() == figures["cuda"].keys()
    for metric, value in figures["cpu"].items():
        assert figures["cuda"][metric] == pytest.approx(value, abs=2 / 80 + 1e-9), metric


def test_fine_tuning_learns(garments: Path, tmp_path: Path) -> None:
    """A few steps from random weights are no figure that two devices share: the classes are learnt on both."""
    for device in ("cpu", "cuda"):
        options = {"device": device, "optim__epochs": 10, "optim__batch": 16}
        assert finetune.main(arguments(garments, tmp_path / device, **options)) == 0
        (record,) = recorded(tmp_path / device)
        assert record.metrics["top1"] > 0.8


def test_logistic_regression_finds_the_minimum_of_the_cpu() -> None:
    x, y = clusters(2000)
    trained = torch.ones(len(x), dtype=torch.bool)
    heads = []
    for device in (CPU, CUDA):
        problem = Problem(x, y, trained, 4, device)
        problem.solve(1e-3, steps=500, tolerance=1e-7)
        heads.append(problem.head().cpu())
    new, _ = clusters(500, seed=1)
    torch.testing.assert_close(heads[1](new).softmax(1), heads[0](new).softmax(1), atol=1e-3, rtol=0)


def test_knn_ranks_the_classes_as_the_cpu_does() -> None:
    g = torch.Generator().manual_seed(0)
    bank, queries = (F.normalize(torch.randn(n, 64, generator=g), dim=1) for n in (5000, 300))
    labels = torch.randint(0, 20, (5000,), generator=g)
    here = knn_predict(queries, bank, labels, 20, k=50)
    there = knn_predict(queries.to(CUDA), bank.to(CUDA), labels.to(CUDA), 20, k=50).cpu()
    assert (here[:, 0] == there[:, 0]).double().mean() > 0.99
