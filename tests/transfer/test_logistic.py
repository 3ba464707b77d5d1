"""Logistic regression on features: against scikit-learn, autograd, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from common.features import Cores
from transfer.classification import logistic
from transfer.classification.heads import predict

CPU = torch.device("cpu")


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

    def test_the_gradient_equals_autograd(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_unused_images_change_nothing(self) -> None:
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

    def test_the_penalty_with_the_highest_held_out_accuracy_is_chosen(self) -> None:
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

    def test_no_convergence_and_a_penalty_at_the_end_of_the_list_are_logged(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        y = (torch.arange(400) % 5 == 0).long()  # of few and far ones, which a large penalty gives up
        x = y[:, None] + 0.1 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        shown: list[str] = []
        logistic.fit(x, y, 2, torch.arange(40), CPU, [0.01, 100.0], shown.append)
        assert "penalty 0.01 is the smallest of --penalties: a smaller one may be better, e.g. 0.001" in shown
        logistic.fit(x, y, 2, torch.arange(40), CPU, [0.001, 0.01], shown.append)
        assert "penalty 0.01 is the largest of --penalties: a larger one may be better, e.g. 0.1" in shown
        assert "converged" not in "".join(shown)
        monkeypatch.setattr(logistic.Problem.solve, "__defaults__", (1e-3, 1))  # one step
        logistic.fit(x, y, 2, torch.arange(40), CPU, [1e-4], shown.append)
        assert shown[-1].startswith("penalty 0.0001: not converged after ")

    def test_half_precision_features_give_nearly_the_same_head(self) -> None:
        x, y = clusters(200)
        heads = [
            logistic.fit(x.to(dtype), y, 4, torch.arange(20), CPU, [0.01], lambda _: None)[0]
            for dtype in (torch.float32, torch.float16)
        ]
        agree = predict(heads[0], x, 1) == predict(heads[1], x.half(), 1)
        assert agree.double().mean() > 0.97


def test_features_stay_on_a_gpu_with_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every evaluation of the loss sends all of them again."""
    features, cuda = torch.ones(100, 8), torch.device("cuda", 0)
    assert logistic.near(features, torch.device("cpu")) is features
    for free, device in ((2 * features.nbytes, "cuda"), (2 * features.nbytes - 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 * 2**30))
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert logistic.near(features, cuda).device.type == device
