"""Collectives: no-ops without a process group, and what they say with two processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from common import distributed
from common.surroundings import leave_process_group
from pretrain.batch_norm import all_to_all, shuffle
from tests.common.gloo import WORLD, run_two

CPU = torch.device("cpu")
BATCH, GROUPS, SEEDS = 12, 2, 6


def global_batch() -> Tensor:
    """(BATCH, 2, 3): every number differs."""
    return torch.arange(BATCH * 6).view(BATCH, 2, 3)


class FakeGpus:
    """Some GPUs that only answer to their number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.current: list[torch.device] = []
        self.joined: list[tuple[str, Any]] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", self.current.append)
        monkeypatch.setattr(dist, "init_process_group", lambda name, **given: self.joined.append((name, given)))


class TestDevices:
    @pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
    def test_the_device_becomes_the_current_one(self, monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
        monkeypatch.delenv("RANK", raising=False)
        gpus = FakeGpus(monkeypatch, 2)
        assert distributed.start(name) == torch.device("cuda", index)
        assert gpus.current == [torch.device("cuda", index)]
        assert gpus.joined == []

    def launched(self, monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
        variables = {"RANK": 9, "LOCAL_RANK": local_rank, "WORLD_SIZE": 16, "MASTER_ADDR": "host", "MASTER_PORT": 1}
        for variable, value in variables.items():
            monkeypatch.setenv(variable, str(value))

    def test_a_process_joins_with_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = FakeGpus(monkeypatch, 2)
        self.launched(monkeypatch, 1)
        own = torch.device("cuda", 1)
        assert distributed.start("auto") == own
        assert gpus.current == [own]
        assert gpus.joined == [("nccl", {"timeout": distributed.START_TIMEOUT, "device_id": own})]

    def test_more_processes_than_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gpus = FakeGpus(monkeypatch, 2)
        self.launched(monkeypatch, 2)
        with pytest.raises(ValueError, match="process 2 of this machine has no GPU: torch sees 2"):
            distributed.start("auto")
        assert gpus.joined == []

    @pytest.mark.parametrize("name", ["auto", "cuda"])
    def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        FakeGpus(monkeypatch, 0)
        for variable in ("RANK", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        there = distributed.Path.exists
        monkeypatch.setattr(distributed.Path, "exists", lambda p: str(p) == "/dev/nvidiactl" or there(p))
        with pytest.raises(ValueError, match=r"for CUDA 13\.0 cannot use the NVIDIA GPU of this machine: update"):
            distributed.start(name)
        assert distributed.start("cpu") == CPU
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert not distributed.has_gpu()  # hidden on purpose


class FakeNccl:
    """NCCL's process group, as far as it is left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
        monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=self))
        monkeypatch.setattr(dist, "destroy_process_group", lambda: self.calls.append("destroy"))

    def abort(self) -> None:
        self.calls.append("abort")


class TestLeaving:
    def test_an_error_does_not_wait_for_operations_of_the_other_ranks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        group = FakeNccl(monkeypatch)
        try:
            raise RuntimeError("on this rank alone")
        except RuntimeError:
            leave_process_group()
        assert group.calls == ["abort", "destroy"]

    def test_the_end_of_a_command_aborts_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        group = FakeNccl(monkeypatch)
        leave_process_group()
        assert group.calls == ["destroy"]


class TestAlone:
    def test_there_is_one_process(self) -> None:
        assert (distributed.world_size(), distributed.rank()) == (1, 0)

    def test_gathering_returns_what_was_given(self) -> None:
        x = torch.randn(3, 2)
        assert distributed.all_gather(x) is x
        assert distributed.gather_objects({"a": 1}) == [{"a": 1}]

    def test_mean_leaves_the_tensors(self) -> None:
        x, n = torch.randn(3), torch.randn(3, dtype=torch.float64)
        before = x.clone(), n.clone()
        distributed.all_mean_([x, n])
        distributed.all_mean_([])
        assert torch.equal(x, before[0])
        assert torch.equal(n, before[1])

    @pytest.mark.parametrize("flag", [True, False])
    def test_any_rank_is_this_rank(self, flag: bool) -> None:
        assert distributed.any_rank(flag, CPU) is flag

    def test_barrier_and_stop_return(self) -> None:
        distributed.barrier()
        distributed.stop()

    def test_start_without_a_launcher_joins_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RANK", raising=False)
        assert distributed.start("cpu") == CPU
        assert not dist.is_initialized()

    def test_a_gpu_that_is_not_there_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert distributed.start("auto") == CPU
        with pytest.raises(ValueError, match="device=cuda:1: torch finds no GPU; use --device cpu or auto"):
            distributed.start("cuda:1")

    @pytest.mark.parametrize("device", ["foo", "", "gpu", "cuda:", "cuda:x", "CPU", "mps"])
    def test_another_device_is_an_error(self, device: str) -> None:
        with pytest.raises(ValueError, match=f"device={device}: must be auto, cpu, cuda or cuda:N"):
            distributed.start(device)

    def test_a_gpu_number_that_is_too_high_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeGpus(monkeypatch, 2)
        monkeypatch.delenv("RANK", raising=False)
        assert distributed.start("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(ValueError, match="device=cuda:2: this machine has 2 GPUs, counted from 0"):
            distributed.start("cuda:2")

    def test_all_to_all_is_indexing(self) -> None:
        order = shuffle(BATCH, GROUPS, (0,))
        assert torch.equal(all_to_all(global_batch(), order), global_batch()[order])

    def test_processes_on_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        assert distributed.local_processes() == 1
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert distributed.local_processes() == 4


def collectives() -> dict[str, Any]:
    """What two processes get from every helper."""
    me = distributed.rank()
    means = [torch.full((2, 2), float(me)), torch.tensor(3.0 * me, dtype=torch.float64), torch.ones(3) * me]
    distributed.all_mean_(means)
    found: dict[str, Any] = {
        "rank": me,
        "world": distributed.world_size(),
        "gathered": distributed.all_gather(torch.tensor([[2 * me, 0], [2 * me + 1, 0]])),
        "gathered_strided": distributed.all_gather(torch.arange(6).view(2, 3).T + 10 * me),
        "means": means,
        "any": [distributed.any_rank(flag, CPU) for flag in (me == 0, me == 1, False, True)],
        "objects": distributed.gather_objects({"rank": me}),
    }
    distributed.barrier()
    return found | {"shuffled": [shuffled(shuffle(BATCH, GROUPS, (s,))) for s in range(SEEDS)]}


def shuffled(order: Tensor) -> dict[str, Any]:
    """This rank's part of a shuffled batch, what it cost, and the batch put back in order."""
    n, me = BATCH // WORLD, distributed.rank()
    sent: list[tuple[int, list[int]]] = []
    send = dist.all_to_all_single

    def counting(output: Tensor, given: Tensor, *splits: Any) -> Any:
        sent.append((given.numel(), splits[1]))
        return send(output, given, *splits)

    dist.all_to_all_single = counting
    try:
        part = all_to_all(global_batch()[me * n : (me + 1) * n], order)
    finally:
        dist.all_to_all_single = send
    back = distributed.all_gather(part)[order.argsort()]
    return {"order": order, "part": part, "sent": sent, "back": back}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_two(collectives)


@pytest.mark.ddp
class TestTwoProcesses:
    def test_ranks(self, two: list[dict[str, Any]]) -> None:
        assert [(r["rank"], r["world"]) for r in two] == [(0, 2), (1, 2)]

    def test_gathered_in_rank_order(self, two: list[dict[str, Any]]) -> None:
        for result in two:
            assert result["gathered"][:, 0].tolist() == [0, 1, 2, 3]
            assert result["gathered_strided"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]

    def test_means(self, two: list[dict[str, Any]]) -> None:
        for result in two:
            expected = [torch.full((2, 2), 0.5), torch.tensor(1.5, dtype=torch.float64), torch.full((3,), 0.5)]
            torch.testing.assert_close(result["means"], expected, rtol=0, atol=0)

    def test_one_rank_is_enough(self, two: list[dict[str, Any]]) -> None:
        assert [result["any"] for result in two] == [[True, True, False, True]] * 2

    def test_objects_in_rank_order(self, two: list[dict[str, Any]]) -> None:
        assert [result["objects"] for result in two] == [[{"rank": 0}, {"rank": 1}]] * 2

    @pytest.mark.parametrize("s", range(SEEDS))
    def test_all_to_all_equals_indexing_the_global_batch(self, two: list[dict[str, Any]], s: int) -> None:
        order = shuffle(BATCH, GROUPS, (s,))
        assert all(torch.equal(result["shuffled"][s]["order"], order) for result in two)
        parts = [result["shuffled"][s]["part"] for result in two]
        assert torch.equal(torch.cat(parts), global_batch()[order])
        assert all(torch.equal(result["shuffled"][s]["back"], global_batch()) for result in two)

    @pytest.mark.parametrize("s", range(SEEDS))
    def test_a_rank_sends_each_of_its_images_once(self, two: list[dict[str, Any]], s: int) -> None:
        """One message of n images, of which those that stay are half; an all-gather would hand out world * n."""
        n = BATCH // WORLD
        for rank, result in enumerate(two):
            ((numel, counts),) = result["shuffled"][s]["sent"]
            assert numel == n * 6
            destinations = (result["shuffled"][s]["order"].view(WORLD, n) // n == rank).sum(1).tolist()
            assert counts == destinations == [n // 2, n // 2]
