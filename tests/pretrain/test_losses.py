"""The losses against loops written from the papers, closed forms, degenerate cases and extreme numbers.

Shapes: N queries, C embedding width, K queue entries.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain import losses
from pretrain.losses import LOSSES, info_nce, positives, supcon, supcon_in, unicon
from tests.pretrain.loss_reference import Case, linear_space_unicon, make_case, naive_supcon, naive_unicon

BLOCK = 8
K_AROUND_BLOCK = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 1]
TEMPERATURES = [0.02, 0.05, 0.07, 0.2, 1.0]


def gradients(loss: Tensor, case: Case) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [case.q, case.k])


WAYS = {"positives-by-block": (0.0, 80.0), "positives-one-by-one": (2.0, 80.0), "running-maxima": (2.0, 0.0)}


@pytest.fixture(params=WAYS.values(), ids=list(WAYS))
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of the queue, the last one not full; positives added and sums scaled in each way."""
    monkeypatch.setitem(losses.CHUNK, "cpu", BLOCK)
    monkeypatch.setattr(losses, "SPARSE", request.param[0])
    monkeypatch.setattr(losses, "EXPONENT", request.param[1])


@pytest.mark.usefixtures("small_blocks")
class TestUnicon:
    @pytest.mark.parametrize("labelled", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("temperature", TEMPERATURES)
    def test_equals_the_double_loop(self, temperature: float, labelled: float) -> None:
        case = make_case(labelled=labelled)
        expected = torch.tensor(naive_unicon(case, temperature), dtype=torch.float64)
        torch.testing.assert_close(unicon(*case, temperature, "none"), expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("size", K_AROUND_BLOCK)
    @pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK + 1])
    def test_equals_the_double_loop_for_any_number_of_blocks(self, n: int, size: int) -> None:
        case = make_case(n=n, size=size)
        expected = torch.tensor(naive_unicon(case, 0.2), dtype=torch.float64)
        torch.testing.assert_close(unicon(*case, 0.2, "none"), expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("size", K_AROUND_BLOCK)
    @pytest.mark.parametrize("labelled", [0.0, 0.7, 1.0])
    def test_gradient_equals_autograd_through_the_linear_form(self, size: int, labelled: float) -> None:
        case = make_case(size=size, labelled=labelled).with_grad()
        ours = gradients(unicon(*case, 0.1), case)
        theirs = gradients(linear_space_unicon(case, 0.1), case)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("labelled", [0.0, 0.7, 1.0])
    def test_gradcheck(self, labelled: float) -> None:
        case = make_case(n=3, c=4, size=2 * BLOCK + 1, labelled=labelled).with_grad()
        ignore = torch.arange(2 * BLOCK + 1)[None] % 5 == torch.arange(3)[:, None]

        def loss(q: Tensor, k: Tensor) -> Tensor:
            return unicon(q, k, *case[2:], 0.3, "none", ignore)

        assert torch.autograd.gradcheck(loss, (case.q, case.k))

    def test_queue_gets_no_gradient(self) -> None:
        case = make_case().with_grad()
        case = case._replace(queue=case.queue.requires_grad_())
        unicon(*case, 0.2).backward()
        assert case.queue.grad is None

    def test_detached_keys_leave_the_gradient_of_the_queries_as_it_is(self) -> None:
        case = make_case().with_grad()
        both = gradients(unicon(*case, 0.2), case)[0]
        alone = torch.autograd.grad(unicon(*case._replace(k=case.k.detach()), 0.2), case.q)[0]
        assert torch.equal(both, alone)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("temperature", TEMPERATURES)
    @pytest.mark.parametrize("labelled", [0.0, 0.5, 1.0])
    def test_low_precision_inputs_are_computed_in_fp32(
        self, dtype: torch.dtype, temperature: float, labelled: float
    ) -> None:
        low = make_case(n=16, c=128, size=301, labelled=labelled).to(dtype).with_grad()
        exact = Case(*(t.detach().double() if t.is_floating_point() else t for t in low)).with_grad()
        loss, reference = unicon(*low, temperature, "none"), unicon(*exact, temperature, "none")
        assert loss.dtype == torch.float32
        # Similarities carry fp32 rounding times 1 / T <= 50, on losses of about 5 to 70.
        torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-5)
        ours, theirs = gradients(loss.mean(), low), gradients(reference.mean(), exact)
        assert [g.dtype for g in ours] == [dtype, dtype]
        for a, b in zip(ours, theirs, strict=True):
            # The gradient is rounded once, to the dtype of the input; fp16 below 6e-8 becomes zero.
            eps = max(torch.finfo(dtype).eps, 1e-5)
            torch.testing.assert_close(a.double(), b, rtol=eps, atol=1e-7 + eps * float(b.abs().max()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", LOSSES)
    def test_autocast_changes_nothing(self, name: str, dtype: torch.dtype) -> None:
        case = make_case(n=16, c=128, size=301).to(torch.float32).with_grad()
        outside = LOSSES[name](*case, 0.07)
        with torch.autocast("cpu", dtype):
            inside = LOSSES[name](*case, 0.07)
        assert torch.equal(inside, outside)
        for a, b in zip(gradients(inside, case), gradients(outside, case), strict=True):
            assert torch.equal(a, b)

    def test_one_class_has_no_negatives_and_loss_zero(self) -> None:
        case = make_case(labelled=1.0, classes=1).to(torch.float32).with_grad()
        loss = unicon(*case, 0.2, "none")
        assert torch.equal(loss, torch.zeros(5))
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(loss.sum(), case))

    def test_one_class_in_the_first_blocks_only(self) -> None:
        """A query without negatives so far meets its first one in a later block."""
        case = make_case(labelled=1.0, classes=1, size=3 * BLOCK + 1).with_grad()
        case.queue_labels[-1] = 7
        expected = torch.tensor(naive_unicon(case, 0.2), dtype=torch.float64)
        torch.testing.assert_close(unicon(*case, 0.2, "none"), expected)
        torch.testing.assert_close(gradients(unicon(*case, 0.2), case), gradients(linear_space_unicon(case, 0.2), case))

    def test_an_unlabelled_queue_entry_is_a_negative_of_labelled_queries(self) -> None:
        case = make_case(labelled=1.0, classes=2)
        unlabelled, foreign, own = (
            case._replace(queue_labels=torch.full((13,), value)) for value in (-1, 9, int(case.labels[0]))
        )
        assert torch.equal(unicon(*unlabelled, 0.2), unicon(*foreign, 0.2))
        assert not torch.equal(unicon(*unlabelled, 0.2), unicon(*own, 0.2))

    def test_unlabelled_queries_are_no_class_of_their_own(self) -> None:
        case = make_case(labelled=0.0)
        labelled_queue = case._replace(queue_labels=torch.arange(13) % 3)
        assert torch.equal(unicon(*case, 0.2), unicon(*labelled_queue, 0.2))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_extreme_logits(self, dtype: torch.dtype) -> None:
        """T = 0.005 and opposed vectors: log(1 + K exp(2 / T)) = 400 + log K, where exp(400) is no fp32 number."""
        q = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
        k, queue = torch.tensor([[-1.0, 0.0]], dtype=dtype), torch.tensor([[1.0], [0.0]], dtype=dtype).repeat(1, 20)
        loss = unicon(q, k, queue, torch.tensor([-1]), torch.full((20,), -1), 0.005)
        assert float(loss.detach()) == pytest.approx(400 + math.log(20), rel=1e-6)
        loss.backward()
        assert q.grad is not None
        assert float(q.grad[0, 0]) == pytest.approx(400)  # (queue - k) / T

    def test_extreme_logits_of_a_perfect_query(self) -> None:
        q = torch.tensor([[1.0, 0.0]], requires_grad=True)
        loss = unicon(q, q.detach(), -q.detach().T.repeat(1, 20), torch.tensor([-1]), torch.full((20,), -1), 0.005)
        loss.backward()
        assert float(loss.detach()) == 0
        assert q.grad is not None
        assert torch.isfinite(q.grad).all()

    def test_gradient_weights_of_positives_and_negatives_are_equal(self) -> None:
        """Both sides weigh AB / (1 + AB) / T: with embedding axis 0 marking positives, 1 negatives."""
        q = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        k, queue = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 0, 0], [0, 1.0, 1]]).double()
        unicon(q, k, queue, torch.tensor([4]), torch.tensor([4, -1, 5]), 0.5).backward()
        weight = (2 * 2) / (1 + 2 * 2) / 0.5
        torch.testing.assert_close(q.grad, torch.tensor([[-weight, weight]]).double())


def test_finite_at_the_size_of_the_paper_in_half_precision() -> None:
    """The published linear form overflows here: the sum over negatives alone is above 65504."""
    case = make_case(n=2, c=128, size=65536, classes=1000, labelled=1.0).to(torch.float16)
    linear = (case.q @ case.queue).div(0.2).exp().sum(1)
    assert torch.isinf(linear).all()
    assert torch.isfinite(unicon(*case, 0.2, "none")).all()


@pytest.mark.parametrize(
    ("size", "per_class", "value"),
    [(65536, 0, 11.0904), (65536, 65, 15.2790), (4096, 0, 8.3180), (10, 3, math.log(1 + 7 * 4))],
)
def test_equal_similarities_give_chance_level(size: int, per_class: int, value: float) -> None:
    """log(1 + negatives * positives); 11.09 is MoCo v2's, 15.3 that of ImageNet with all labels."""
    one = torch.tensor([[1.0, 0.0]])
    queue_labels = torch.where(torch.arange(size) < per_class, 3, 8)
    loss = unicon(one, one, one.T.repeat(1, size), torch.tensor([3]), queue_labels, 0.2)
    assert float(loss) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("loss", [unicon, info_nce])
def test_without_labels_it_is_the_cross_entropy_of_moco(loss: losses.LossFn, temperature: float) -> None:
    """F.cross_entropy of [own key | queue] with target 0, value and gradient, in fp32."""
    case = make_case(n=32, c=128, size=1000, labelled=0.0).to(torch.float32).with_grad()
    case = case._replace(queue_labels=torch.arange(1000) % 10)
    logits = torch.cat([(case.q * case.k).sum(1, keepdim=True), case.q @ case.queue], 1) / temperature
    theirs = F.cross_entropy(logits, torch.zeros(32, dtype=torch.int64))
    ours = loss(*case, temperature)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)  # fp32 rounding of logits up to 50
    for a, b in zip(gradients(ours, case), gradients(theirs, case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_info_nce_looks_at_no_label() -> None:
    case = make_case(labelled=1.0)
    other = case._replace(labels=torch.full((5,), -1), queue_labels=torch.full((13,), -1))
    assert torch.equal(info_nce(*case, 0.2), info_nce(*other, 0.2))
    assert not torch.equal(info_nce(*case, 0.2), unicon(*case, 0.2))


@pytest.mark.parametrize("labelled", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("form", ["out", "in"])
def test_supcon_equals_the_loops_of_its_paper(form: str, temperature: float, labelled: float) -> None:
    case = make_case(labelled=labelled)
    expected = torch.tensor(naive_supcon(case, temperature, form), dtype=torch.float64)
    loss = {"out": supcon, "in": supcon_in}[form]
    torch.testing.assert_close(loss(*case, temperature, "none"), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["out", "in"])
def test_supcon_gradcheck(form: Any) -> None:
    case = make_case(n=3, c=4).with_grad()
    ignore = torch.arange(13)[None] % 5 == torch.arange(3)[:, None]
    assert torch.autograd.gradcheck(lambda q, k: supcon(q, k, *case[2:], 0.3, "none", ignore, form), (case.q, case.k))


@pytest.mark.parametrize("loss", [supcon, supcon_in])
def test_supcon_of_one_positive_is_info_nce(loss: losses.LossFn) -> None:
    case = make_case(labelled=0.0)
    torch.testing.assert_close(loss(*case, 0.1, "none"), info_nce(*case, 0.1, "none"))


@pytest.mark.parametrize("loss", [supcon, supcon_in])
def test_supcon_is_finite_at_extreme_logits(loss: losses.LossFn) -> None:
    case = make_case(n=8, c=2, size=50).to(torch.float16).with_grad()
    value = loss(*case, 0.005)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients(value, case))


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_public_signature(self, name: str) -> None:
        loss = supcon if name == "supcon_in" else LOSSES[name]  # supcon_in passes everything on to supcon
        parameters = inspect.signature(loss).parameters
        names = ["q", "k", "queue", "labels", "queue_labels", "temperature", "reduction", "ignore"]
        assert list(parameters)[:8] == names
        required = [p.name for p in parameters.values() if p.default is inspect.Parameter.empty]
        assert required == names[:6]
        assert parameters["reduction"].default == "mean"

    def test_reductions(self, name: str) -> None:
        case = make_case()
        each = LOSSES[name](*case, 0.2, reduction="none")
        assert each.shape == (5,)
        torch.testing.assert_close(LOSSES[name](*case, 0.2), each.sum() / 5)
        torch.testing.assert_close(LOSSES[name](*case, 0.2, reduction="sum"), each.sum())

    def test_sum_scales_the_gradient(self, name: str) -> None:
        case = make_case().with_grad()
        by_sum = gradients(LOSSES[name](*case, 0.2, reduction="sum"), case)
        by_mean = gradients(LOSSES[name](*case, 0.2), case)
        torch.testing.assert_close(by_sum, tuple(g * 5 for g in by_mean))

    @pytest.mark.usefixtures("small_blocks")
    def test_an_ignored_entry_is_as_good_as_absent(self, name: str) -> None:
        case = make_case(size=2 * BLOCK + 3).with_grad()
        ignore = torch.rand(5, 2 * BLOCK + 3, generator=torch.Generator().manual_seed(1)) < 0.4
        assert (ignore & positives(case.labels, case.queue_labels)).any()
        masked = LOSSES[name](*case, 0.2, reduction="none", ignore=ignore)
        rows = [
            LOSSES[name](
                case.q[i : i + 1],
                case.k[i : i + 1],
                case.queue[:, ~ignore[i]],
                case.labels[i : i + 1],
                case.queue_labels[~ignore[i]],
                0.2,
            )
            for i in range(5)
        ]
        torch.testing.assert_close(masked, torch.stack(rows))
        torch.testing.assert_close(gradients(masked.mean(), case), gradients(torch.stack(rows).mean(), case))

    def test_everything_ignored_is_no_loss(self, name: str) -> None:
        case = make_case().to(torch.float32).with_grad()
        loss = LOSSES[name](*case, 0.2, ignore=torch.ones(5, 13, dtype=torch.bool))
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        # supcon takes the difference of two equal log-sum-exps: zero up to rounding times 1 / T
        assert all(float(g.abs().max()) < 1e-5 for g in gradients(loss, case))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 0.0}, r"temperature=0.0: must be above 0"),
            ({"temperature": -0.2}, r"temperature=-0.2"),
            ({"temperature": math.nan}, r"temperature=nan"),
            ({"reduction": "average"}, r"reduction='average': use 'mean', 'sum' or 'none'"),
            ({"k": torch.zeros(4, 6)}, r"q \(5, 6\) and k \(4, 6\): both must be \(N, C\)"),
            ({"q": torch.zeros(6), "k": torch.zeros(6)}, r"q \(6,\) and k \(6,\): both must be \(N, C\)"),
            ({"queue": torch.zeros(13, 6)}, r"queue \(13, 6\): must be \(C, K\) with C = 6"),
            ({"labels": torch.zeros(4)}, r"labels \(4,\) and queue_labels \(13,\): must be \(5,\) and \(13,\)"),
            ({"queue_labels": torch.zeros(12)}, r"labels \(5,\) and queue_labels \(12,\)"),
            ({"ignore": torch.zeros(13, 5, dtype=torch.bool)}, r"ignore \(13, 5\): must be \(N, K\) = \(5, 13\)"),
        ],
    )
    def test_mistakes_are_named(self, name: str, change: dict[str, Any], message: str) -> None:
        arguments = {**make_case().to(torch.float32)._asdict(), "temperature": 0.2, **change}
        with pytest.raises(ValueError, match=message):
            LOSSES[name](**arguments)


sizes = st.integers(1, 40)
seeds = st.integers(0, 10_000)
shares = st.sampled_from([0.0, 0.3, 1.0])
warm = st.sampled_from([0.02, 0.2, 1.0])
examples = settings(max_examples=25, deadline=None, derandomize=True)


@examples
@given(name=st.sampled_from(sorted(LOSSES)), n=st.integers(1, 6), size=sizes, seed=seeds, labelled=shares, t=warm)
def test_the_order_of_the_queue_plays_no_role(
    name: str, n: int, size: int, seed: int, labelled: float, t: float
) -> None:
    case = make_case(n=n, size=size, seed=seed, labelled=labelled)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    moved = case._replace(queue=case.queue[:, order], queue_labels=case.queue_labels[order])
    torch.testing.assert_close(LOSSES[name](*moved, t), LOSSES[name](*case, t), rtol=1e-10, atol=1e-12)


@examples
@given(n=st.integers(1, 6), size=sizes, seed=seeds, labelled=shares, t=warm, label=st.integers(-1, 3))
def test_one_more_queue_entry_never_lowers_unicon(
    n: int, size: int, seed: int, labelled: float, t: float, label: int
) -> None:
    """Both a negative and a positive add terms to the sum (label 3 belongs to no query)."""
    case = make_case(n=n, size=size + 1, seed=seed, labelled=labelled)
    case.queue_labels[-1] = label
    fewer = case._replace(queue=case.queue[:, :-1], queue_labels=case.queue_labels[:-1])
    assert (unicon(*case, t, "none") >= unicon(*fewer, t, "none") - 1e-12).all()


@examples
@given(n=st.integers(1, 6), size=sizes, seed=seeds, block=st.integers(1, 45))
def test_the_size_of_a_block_plays_no_role(n: int, size: int, seed: int, block: int) -> None:
    case = make_case(n=n, size=size, seed=seed).with_grad()
    whole = unicon(*case, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.CHUNK, "cpu", block)
        parts = unicon(*case, 0.1)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(parts, case), gradients(whole, case), rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest floating tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.is_floating_point():
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize(("name", "holds_all"), [("unicon", False), ("info_nce", False), ("supcon", True)])
def test_unicon_holds_no_matrix_of_queries_times_queue(
    monkeypatch: pytest.MonkeyPatch, name: str, holds_all: bool
) -> None:
    """Forward and backward; supcon, which does hold one, shows that the probe sees it."""
    n, c, size = 64, 8, 8192
    monkeypatch.setitem(losses.CHUNK, "cpu", 512)
    case = make_case(n=n, c=c, size=size).to(torch.float32).with_grad()
    with Largest() as probe:
        LOSSES[name](*case, 0.2).backward()
    assert probe.numel == n * (size + 1) if holds_all else probe.numel <= max(n * 512, c * size)
