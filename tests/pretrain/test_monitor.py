"""What is logged, when, and what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.images import ImageSet
from common.run_folder import RunFolder
from pretrain import monitor as monitor_module
from pretrain.config import Config, MonitorConfig, OptimConfig
from pretrain.monitor import Monitor, NonFiniteError

CPU = torch.device("cpu")
CONFIG = MonitorConfig(log_every=10, plateau=30, k=3)
CHANCE = 4.0
MakeImages = Callable[..., ImageSet]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stops the time; calling it lets seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(monitor_module.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    """A started run folder."""
    run = RunFolder(tmp_path / "run")
    run.start({}, CPU, 0, "")
    yield run
    run.close()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written above the progress bar."""
    lines: list[str] = []
    monkeypatch.setattr(monitor_module.tqdm, "write", lines.append)
    return lines


class Steps:
    """What a monitor reads of a training: 1000 steps of 16 images, 100 an epoch."""

    def __init__(self, step: int) -> None:
        self.step, self.steps, self.device = step, 1000, CPU
        self.config = Config(monitor=CONFIG, optim=OptimConfig(batch=16))
        self.model = SimpleNamespace(encoder_q=None)

    @property
    def epoch(self) -> float:
        return self.step / 100

    def average_statistics(self) -> None:
        pass


class Run:
    """Goes through the steps of a run, each of which takes a second."""

    def __init__(self, monitor: Monitor, wait: Callable[[float], None]) -> None:
        self.monitor, self.wait = monitor, wait

    def load(self, steps: int, data_time: float) -> Iterator[None]:
        for _ in range(steps):
            self.wait(data_time)
            yield

    def go(self, steps: int, loss: float = 1.0, data_time: float = 0.0, **statistics: float) -> None:
        """Observes `steps` steps, and reports where it is due."""
        for _ in self.monitor.time_loading(self.load(steps, data_time)):
            self.monitor.t.step += 1
            self.wait(1.0 - data_time)
            self.monitor.observe(0.03, torch.tensor(loss))
            if self.monitor.due(self.monitor.t.step):
                values = {"chance": CHANCE, "queue_fill": 1.0, "embedding_std": 0.8, "grad_norm": 1.0} | statistics
                self.monitor.report({name: torch.tensor(value) for name, value in values.items()})


@pytest.fixture
def start(folder: RunFolder, clock: Callable[[float], None]) -> Iterator[Callable[..., Run]]:
    """Starts or continues a run of 1000 steps of 16 images."""
    monitors = []

    def make(step: int = 0, progress: dict[str, Any] | None = None) -> Run:
        monitors.append(Monitor(Steps(step), folder, progress))
        return Run(monitors[-1], clock)

    yield make
    for monitor in monitors:
        monitor.close()


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]


# Metrics


def test_a_line_is_written_every_log_every_steps_and_at_the_last(start: Callable[..., Run], folder: RunFolder) -> None:
    run = start(step=975)
    run.go(25)
    assert [row["step"] for row in rows(folder)] == [980, 990, 1000]
    run.monitor.t.steps = 1004
    run.go(4)
    assert rows(folder)[-1]["step"] == 1004


def test_a_line_holds_the_mean_loss_the_statistics_and_the_speed(start: Callable[..., Run], folder: RunFolder) -> None:
    run = start()
    run.go(10, loss=9.0)
    for loss in range(10):
        run.go(1, loss=float(loss), data_time=0.1, positive_similarity=0.5)
    assert rows(folder)[1] == pytest.approx(
        {
            "step": 20,
            "epoch": 0.2,
            "loss": 4.5,
            "chance": CHANCE,
            "queue_fill": 1.0,
            "embedding_std": 0.8,
            "grad_norm": 1.0,
            "positive_similarity": 0.5,
            "lr": 0.03,
            "images_per_second": 16.0,
            "data_time_fraction": 0.1,
        },
        rel=1e-6,
    )


def test_tensorboard_holds_the_same_numbers(start: Callable[..., Run], folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start().go(20, loss=2.5)
    folder.close()
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 2.5), (20, 2.5)]


def test_knn_is_written_logged_remembered_and_not_counted_as_training_time(
    start: Callable[..., Run], folder: RunFolder, clock: Callable[[float], None], logged: list[str]
) -> None:
    run = start()
    run.go(5)

    def knn(encoder: Any, device: torch.device) -> float:
        clock(1000.0)
        return 0.815

    run.monitor.evaluate(knn)
    run.go(5)
    knn, steps = rows(folder)
    assert knn == {"step": 5, "epoch": 0.05, "knn": 0.815}
    assert steps["images_per_second"] == pytest.approx(16.0)
    assert logged == ["step 5, epoch 0.05: kNN 81.50% on held-out images"]
    assert run.monitor.knn == {"5": 0.815}


# Warnings


@pytest.mark.parametrize("loss", [CHANCE, 1.009 * CHANCE, 0.991 * CHANCE])
def test_a_plateau_at_chance_level_is_warned_of_once_and_only_when_long_enough(
    start: Callable[..., Run], logged: list[str], loss: float
) -> None:
    run = start()
    run.go(29, loss=loss)
    assert logged == []
    run.go(1, loss=loss)
    assert len(logged) == 1
    assert logged[0].startswith("warning: step 30: the loss ")
    assert f"chance level {CHANCE:.3f} for 30 steps" in logged[0]
    run.go(100, loss=loss)
    assert len(logged) == 1


@pytest.mark.parametrize("loss", [1.02 * CHANCE, 0.98 * CHANCE])
def test_a_loss_off_chance_level_is_no_plateau(start: Callable[..., Run], logged: list[str], loss: float) -> None:
    start().go(100, loss=loss)
    assert logged == []


def test_a_plateau_is_counted_from_the_full_queue_on(start: Callable[..., Run], logged: list[str]) -> None:
    run = start()
    run.go(100, loss=CHANCE, queue_fill=0.99)
    run.go(20, loss=CHANCE)
    assert logged == []
    run.go(10, loss=CHANCE)
    assert len(logged) == 1


def test_leaving_chance_level_starts_the_count_again(start: Callable[..., Run], logged: list[str]) -> None:
    run = start()
    for _ in range(5):
        run.go(20, loss=CHANCE)
        run.go(10, loss=1.0)
    assert logged == []


def test_embeddings_that_stay_alike_are_reported_as_collapsed_once(
    start: Callable[..., Run], logged: list[str]
) -> None:
    run = start()
    run.go(29, embedding_std=0.05)
    assert logged == []
    run.go(1, embedding_std=0.04)
    assert len(logged) == 1
    assert logged[0].startswith("warning: step 30: the embedding std, now 0.040")
    assert "below 0.1 for 30 steps" in logged[0]
    run.go(100, embedding_std=0.05)
    assert len(logged) == 1


def test_the_like_embeddings_of_an_untrained_network_are_no_collapse(
    start: Callable[..., Run], logged: list[str]
) -> None:
    run = start()
    run.go(20, embedding_std=0.01)
    run.go(20, embedding_std=0.11)
    run.go(20, embedding_std=0.01)
    assert logged == []


def test_plateau_and_collapse_are_both_reported(start: Callable[..., Run], logged: list[str]) -> None:
    start().go(60, loss=CHANCE, embedding_std=0.01)
    assert len(logged) == 2


@pytest.mark.parametrize(("data_time", "warnings"), [(0.19, 0), (0.21, 1)])
def test_waiting_for_images_is_reported_once_above_a_fifth_of_the_time(
    start: Callable[..., Run], logged: list[str], data_time: float, warnings: int
) -> None:
    start().go(100, data_time=data_time)
    assert len(logged) == warnings
    assert all(line.startswith("warning: step 30: 21% of the time is spent waiting for images") for line in logged)


@pytest.mark.parametrize("step", [0, 500])
def test_the_first_steps_may_wait_for_the_loaders_to_start(
    start: Callable[..., Run], logged: list[str], step: int
) -> None:
    run = start(step)
    run.go(20, data_time=0.9)
    run.go(100, data_time=0.0)
    assert logged == []


# What is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_rate(start: Callable[..., Run], bad: float) -> None:
    run = start()
    run.go(13)
    run.go(1, loss=bad)
    run.go(2)
    with pytest.raises(NonFiniteError, match=r"^loss at step 14 is not finite \(lr 0\.03\).*base_lr"):
        run.go(10)


def test_a_loss_that_is_not_finite_is_found_before_a_checkpoint_between_reports(start: Callable[..., Run]) -> None:
    run = start()
    run.go(3)
    run.monitor.check_finite()
    run.go(1, loss=math.nan)
    with pytest.raises(NonFiniteError, match="loss at step 4 is not finite"):
        run.monitor.check_finite()


def test_a_gradient_that_is_not_finite_stops_with_its_step(start: Callable[..., Run]) -> None:
    with pytest.raises(NonFiniteError, match=r"^grad_norm at step 10 is not finite \(lr 0\.03\)"):
        start().go(10, grad_norm=math.inf)


def test_a_skipped_fp16_step_is_no_reason_to_stop(start: Callable[..., Run], folder: RunFolder) -> None:
    start().go(20, grad_norm=math.inf, loss_scale=32768.0, skipped_steps=3.0)
    assert [(row["skipped_steps"], "grad_norm" in row) for row in rows(folder)] == [(3.0, False)] * 2


def test_a_loss_scale_that_has_collapsed_stops(start: Callable[..., Run]) -> None:
    with pytest.raises(NonFiniteError, match=r"loss scale has collapsed to 0\.5 at step 10, after 17 skipped steps"):
        start().go(10, grad_norm=math.nan, loss_scale=0.5, skipped_steps=17.0)


def test_a_loss_that_is_not_finite_stops_in_fp16_too(start: Callable[..., Run]) -> None:
    with pytest.raises(NonFiniteError, match="loss at step 1 is not finite"):
        start().go(10, loss=math.nan, grad_norm=math.nan, loss_scale=32768.0, skipped_steps=1.0)


def test_nothing_that_is_not_finite_is_written_as_a_good_line(start: Callable[..., Run], folder: RunFolder) -> None:
    with pytest.raises(NonFiniteError):
        start().go(10, loss=math.nan)
    assert rows(folder) == []


# Unreadable images


def test_an_unreadable_image_is_named_once(start: Callable[..., Run], logged: list[str]) -> None:
    monitor = start().monitor
    for _ in range(3):
        monitor.add_corrupt({7: "a.jpg: broken"}, 10_000, 0.001)
    monitor.add_corrupt({7: "a.jpg: broken", 8: "b.jpg: broken"}, 10_000, 0.001)
    assert logged == ["warning: image skipped: a.jpg: broken", "warning: image skipped: b.jpg: broken"]
    assert monitor.corrupt == {7: "a.jpg: broken", 8: "b.jpg: broken"}


@pytest.mark.parametrize(
    ("images", "share", "allowed"), [(10_000, 0.001, 10), (50, 0.001, 1), (50, 0.1, 5), (50, 0.0, 0), (3, 1.0, 3)]
)
def test_more_unreadable_images_than_the_share_allows_stop_the_run(
    start: Callable[..., Run], logged: list[str], images: int, share: float, allowed: int
) -> None:
    monitor = start().monitor
    for i in range(allowed):
        monitor.add_corrupt({i: f"{i}.jpg: broken"}, images, share)
    complaint = (
        rf"{allowed + 1} of {images} images cannot be read, more than data\.max_corrupt={share} .*last\.jpg: broken"
    )
    with pytest.raises(ValueError, match=complaint):
        monitor.add_corrupt({allowed: "last.jpg: broken"}, images, share)
    assert len(logged) == allowed + 1


# Going on


def test_a_continued_run_keeps_its_counts_and_repeats_no_warning(
    start: Callable[..., Run], logged: list[str], tmp_path: Path
) -> None:
    run = start()
    run.go(20, loss=CHANCE, embedding_std=0.01)
    run.monitor.add_corrupt({7: "a.jpg: broken"}, 10_000, 0.001)
    run.monitor.evaluate(lambda encoder, device: 0.5)
    logged.clear()
    torch.save(run.monitor.state(), tmp_path / "state.pth")
    again = start(20, torch.load(tmp_path / "state.pth", weights_only=True))
    assert again.monitor.state() == run.monitor.state()
    again.go(10, loss=CHANCE, embedding_std=0.01)
    again.monitor.add_corrupt({7: "a.jpg: broken"}, 10_000, 0.001)
    assert [line.split(":")[1] for line in logged] == [" step 30", " step 30"]
    later = start(30, again.monitor.state())
    later.go(60, loss=CHANCE, embedding_std=0.01)
    assert len(logged) == 2
    assert later.monitor.knn == {"20": 0.5}


def test_the_state_is_a_copy(start: Callable[..., Run]) -> None:
    run = start()
    state = run.monitor.state()
    run.monitor.add_corrupt({7: "a.jpg: broken"}, 10_000, 0.001)
    run.monitor.evaluate(lambda encoder, device: 0.5)
    assert state["corrupt"] == state["knn"] == {}


def test_observing_does_not_wait_for_the_device(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A value is read on the host in reports only."""
    run = start()

    def forbidden(_: Tensor) -> float:
        raise AssertionError("a tensor was read on the host")

    for name in ("item", "__float__", "__bool__", "__int__", "tolist"):
        monkeypatch.setattr(Tensor, name, forbidden)
    run.go(9)
    with pytest.raises(AssertionError, match="read on the host"):
        run.go(1)
