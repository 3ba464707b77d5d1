"""Schedules for other batches: well-known values, and what stays the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.scaling import Schedule, comparison, for_batch, for_devices

ONE_X = Schedule(batch=16, lr=0.02, warmup=1000, steps=(60_000, 80_000), iterations=90_000)


def test_one_gpu_with_two_images() -> None:
    """detectron2's own rule (its `auto_scale_workers`) for one worker instead of eight."""
    one = for_devices(ONE_X, 8, 1)
    assert one == Schedule(2, pytest.approx(0.0025), 8000, (480_000, 640_000), 720_000)
    assert one.images == ONE_X.images


def test_the_reference_batch_changes_nothing() -> None:
    assert for_devices(ONE_X, 8, 8) == ONE_X
    assert for_devices(ONE_X, 8, 1, batch=16) == ONE_X


def test_a_batch_can_be_chosen() -> None:
    assert for_devices(ONE_X, 8, 4, batch=64) == Schedule(64, pytest.approx(0.08), 250, (15_000, 20_000), 22_500)


def test_no_warmup_and_no_steps_remain_none() -> None:
    poly = Schedule(batch=16, lr=0.01, warmup=0, steps=(), iterations=20_000)
    assert for_devices(poly, 4, 1) == Schedule(4, pytest.approx(0.0025), 0, (), 80_000)


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 10**6))
def test_lr_per_image_and_images_are_kept(reference: int, batch: int, iterations: int) -> None:
    before = Schedule(reference, 0.1, 0, (iterations // 2,), iterations)
    after = for_batch(before, batch)
    assert after.lr / after.batch == pytest.approx(before.lr / before.batch)
    assert abs(after.images - before.images) <= batch
    assert after.iterations >= 1


@pytest.mark.parametrize(("devices", "batch"), [(3, 16), (2, 0), (2, -2), (32, 16)])
def test_a_batch_that_devices_cannot_share(devices: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"--batch {batch}: must be a multiple of the {devices} devices"):
        for_devices(ONE_X, 8, devices, batch)


def test_a_reference_batch_that_devices_cannot_share() -> None:
    with pytest.raises(ValueError, match="batch of 16 cannot be shared by 3 devices"):
        for_devices(ONE_X, 3, 1)


def test_the_comparison_shows_before_and_after() -> None:
    table = comparison(ONE_X, for_devices(ONE_X, 8, 1))
    rows = {line[:13].strip(): line[13:].split() for line in table.splitlines()[2:]}
    assert rows["batch"] == ["16", "2"]
    assert rows["learning rate"] == ["0.02", "0.0025"]
    assert rows["steps"] == ["60000,", "80000", "480000,", "640000"]
    assert rows["iterations"] == ["90000", "720000"]
