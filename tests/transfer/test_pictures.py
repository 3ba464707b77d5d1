"""Plots: what they show, and that records do not depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.transfer.garments import arguments, recorded, write_garments
from transfer import finetune, knn, linear
from transfer.classification import pictures


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_garments(tmp_path_factory.mktemp("garments"), train=12, test=3)


@pytest.mark.parametrize("classes", [3, 40])
def test_the_confusion_matrix_holds_percentages_of_each_class(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class c has 2 + c images; c % 2 + 1 of them are predicted as the next class, and all of the last two."""
    shown: list[tuple[np.ndarray, list[str]]] = []
    real = pictures.ConfusionMatrixDisplay

    def noted(matrix: np.ndarray, display_labels: list[str]) -> Any:
        shown.append((matrix, display_labels))
        return real(matrix, display_labels=display_labels)

    monkeypatch.setattr(pictures, "ConfusionMatrixDisplay", noted)
    labels = np.repeat(np.arange(classes), np.arange(classes) + 2)
    predicted = labels.copy()
    for c in range(classes):
        rows = np.flatnonzero(labels == c)
        wrong = len(rows) if c >= classes - 2 else c % 2 + 1
        predicted[rows[:wrong]] = (c + 1) % classes
    names = [f"class {c}" for c in range(classes)]
    pictures.confusion(tmp_path / "c.png", labels, predicted, names, "title")
    ((matrix, shown_names),) = shown
    missed = [(predicted[labels == c] != c).mean() for c in range(classes)]
    chosen = sorted(sorted(range(classes), key=lambda c: missed[c])[-pictures.SHOWN :])
    assert len(chosen) == min(classes, 30)
    assert shown_names == [names[c] for c in chosen]
    expected = [[100 * (predicted[labels == row] == column).mean() for column in chosen] for row in chosen]
    np.testing.assert_allclose(matrix, expected)
    assert (tmp_path / "c.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        (torch.ones(40, 16), "they are all alike"),
        (torch.zeros(40, 16), "they are all alike"),
        (torch.ones(40, 16) + 1e-7 * torch.arange(40)[:, None], "they are all alike"),
        (torch.eye(4), "there are 4, 5 are needed"),
        (torch.ones(1, 16), "there are 1, 5 are needed"),
    ],
)
def test_there_is_no_t_sne_of_features_that_it_cannot_embed(
    features: torch.Tensor, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.feature_map(tmp_path / "f.png", features, np.arange(len(features)) % 2, ["a", "b"], "title")
    assert capsys.readouterr().out == f"no t-SNE of the test features: {reason}\n"
    assert not (tmp_path / "f.png").exists()


def test_a_t_sne_of_five_features(tmp_path: Path) -> None:
    pictures.feature_map(tmp_path / "f.png", torch.eye(5), np.arange(5) % 2, ["a", "b"], "title")
    assert (tmp_path / "f.png").stat().st_size > 5000


SHORT = ["--optim.epochs=1", "--optim.batch=8", "--optim.base_lr=[0.1]", "--optim.head_factor=[1]"]


@pytest.mark.parametrize(
    ("command", "picture", "more"),
    [(linear, "feature_map", []), (finetune, "confusion", SHORT), (knn, "neighbours", ["--k=[1]"])],
)
def test_the_record_is_kept_when_a_picture_fails(
    command: Any, picture: str, more: list[str], garments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def failing(*_: Any) -> None:
        assert len(recorded(tmp_path)) == 1
        raise RuntimeError("no ink\nleft")

    monkeypatch.setattr(pictures, picture, failing)
    assert command.main([*arguments(garments, tmp_path, pictures="true"), *more]) == 0
    assert "seed 0: no pictures (RuntimeError: no ink left)" in capsys.readouterr().err
    assert len(recorded(tmp_path)) == 1
