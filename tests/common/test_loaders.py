"""Batches of two views: determinism, order over ranks and restarts, unreadable images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import common.loaders
from common.images import CorruptImageError, DataConfig, ImageSet, load_images
from common.loaders import (
    MAX_REPLACEMENTS,
    Batch,
    EvaluationViews,
    GlobalBatches,
    TwoViews,
    default_workers,
    train_loader,
)
from common.transforms import Image, ViewConfig, evaluation_view

VIEWS = ViewConfig(size=16)
CPU = torch.device("cpu")
Keys = list[tuple[int, int]]
MakeImages = Callable[..., ImageSet]


def two_views(images: ImageSet, seed: int = 0) -> TwoViews:
    """The data set with every label kept."""
    return TwoViews(images, images.labels, VIEWS, seed)


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Lets this process read as one of several."""
    monkeypatch.setattr(common.loaders, "rank", lambda: rank)
    monkeypatch.setattr(common.loaders, "world_size", lambda: world)


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same."""
    same = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("q", "k", "labels", "index"))
    return same and one.corrupt == other.corrupt


# Views


def test_views_are_a_function_of_seed_epoch_and_image_alone(make_images: MakeImages) -> None:
    images = make_images([0, 1, 2, -1] * 4)
    together = two_views(images).__getitems__([(3, i) for i in range(16)])
    for i in (15, 0, 7):
        alone = two_views(images).__getitems__([(3, i)])
        assert torch.equal(alone.q[0], together.q[i])
        assert torch.equal(alone.k[0], together.k[i])


@pytest.mark.parametrize(("seed", "epoch", "number"), [(1, 3, 5), (0, 4, 5), (0, 3, 6)])
def test_another_seed_epoch_or_image_gives_other_views(
    make_images: MakeImages, seed: int, epoch: int, number: int
) -> None:
    images = make_images([0] * 8)
    one, other = two_views(images).__getitems__([(3, 5)]), two_views(images, seed).__getitems__([(epoch, number)])
    assert not torch.equal(one.q, other.q)
    assert not torch.equal(one.k, other.k)


def test_the_two_views_differ_and_show_the_image(make_images: MakeImages) -> None:
    images = make_images([0] * 4)
    only_flip = ViewConfig(size=48, scale=(1, 1), ratio=(4 / 3, 4 / 3), jitter=0, grayscale_prob=0, blur=0)
    plain = TwoViews(images, images.labels, only_flip, 0).__getitems__([(0, i) for i in range(4)])
    for views in (plain.q, plain.k):
        for i, view in enumerate(views.numpy()):
            whole = cv2.resize(images.read(i), (48, 48), interpolation=cv2.INTER_LINEAR)
            # The crop loses at most a row or column to rounding.
            assert min(np.abs(view.astype(int) - x).mean() for x in (whole, whole[:, ::-1])) < 12
    batch = two_views(images).__getitems__([(0, i) for i in range(4)])
    assert all(not torch.equal(q, k) for q, k in zip(batch.q, batch.k, strict=True))


def test_a_batch_has_the_documented_shapes_and_types(make_images: MakeImages) -> None:
    batch = two_views(make_images([2, -1, 0])).__getitems__([(0, 1), (0, 2)])
    assert batch.q.shape == batch.k.shape == (2, 16, 16, 3)
    assert batch.q.dtype == batch.k.dtype == torch.uint8
    assert batch.labels.tolist() == [-1, 0]
    assert batch.index.tolist() == [1, 2]
    assert batch.labels.dtype == batch.index.dtype == torch.int64
    assert batch.corrupt == {}


def test_batches_are_the_same_with_and_without_loader_processes(make_images: MakeImages) -> None:
    images = make_images([0, 1, 2, -1] * 6, corrupt=[3])
    runs = [list(train_loader(two_views(images), GlobalBatches(24, 8, 0, 0, 5), workers, CPU)) for workers in (0, 2)]
    assert len(runs[0]) == len(runs[1]) == 5
    assert all(equal(one, other) for one, other in zip(*runs, strict=True))
    assert any(batch.corrupt for batch in runs[0])


# The order of the images


@pytest.mark.parametrize(("images", "batch"), [(12, 4), (13, 4), (15, 4), (5, 5)])
def test_an_epoch_takes_each_image_at_most_once_and_drops_what_fills_no_batch(images: int, batch: int) -> None:
    per_epoch = images // batch
    steps = list(GlobalBatches(images, batch, seed=0, start=0, stop=3 * per_epoch))
    assert len(steps) == 3 * per_epoch
    for epoch in range(3):
        keys = list(itertools.chain(*steps[epoch * per_epoch : (epoch + 1) * per_epoch]))
        numbers = [number for _, number in keys]
        assert {e for e, _ in keys} == {epoch}
        assert len(set(numbers)) == len(numbers) == per_epoch * batch
        assert set(numbers) <= set(range(images))


def test_images_dropped_from_one_epoch_come_in_others() -> None:
    steps = GlobalBatches(13, 4, seed=0, start=0, stop=3 * 30)
    assert {number for keys in steps for _, number in keys} == set(range(13))


def test_epochs_and_seeds_have_their_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [n for keys in GlobalBatches(64, 8, seed, 8 * epoch, 8 * epoch + 8) for _, n in keys]

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(64))]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    assert order(0, 0) == order(0, 0)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_take_the_batches_of_a_single_process(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    single = list(GlobalBatches(29, 8, seed=5, start=0, stop=7))
    parts: list[list[Keys]] = []
    for r in range(world):
        be_rank(monkeypatch, r, world)
        parts.append(list(GlobalBatches(29, 8, seed=5, start=0, stop=7)))
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == single
    assert all(len(keys) == 8 // world for part in parts for keys in part)


@pytest.mark.parametrize("start", [0, 1, 3, 4, 10])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start: int) -> None:
    whole, tail = GlobalBatches(13, 4, 0, 0, 11), GlobalBatches(13, 4, 0, start, 11)
    assert list(tail) == list(whole)[start:]
    assert len(tail) == 11 - start


def test_resumed_batches_are_the_tail_to_the_last_pixel(make_images: MakeImages) -> None:
    images = make_images([0, 1, 2] * 6, corrupt=[4])
    whole, tail = (
        list(train_loader(two_views(images), GlobalBatches(18, 4, 0, start, 10), 0, CPU)) for start in (0, 6)
    )
    assert all(equal(one, other) for one, other in zip(whole[6:], tail, strict=True))


def test_a_batch_that_the_images_do_not_fill_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"7 training images do not fill a batch; use --optim\.batch 7 or less"):
        GlobalBatches(7, 8, 0, 0, 1)


def test_a_batch_that_the_processes_do_not_divide_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match=r"optim\.batch=8 does not divide by 3 processes"):
        GlobalBatches(100, 8, 0, 0, 1)


# Unreadable images


def test_an_unreadable_image_is_replaced_and_reported_by_its_number(make_images: MakeImages) -> None:
    images = make_images([0, 1, 2, 0, 1, 2], corrupt=[1, 4])
    batch = two_views(images).__getitems__([(0, i) for i in range(6)])
    assert batch.corrupt == {1: "image1.jpg: broken", 4: "image4.jpg: broken"}
    assert {1, 4}.isdisjoint(batch.index.tolist())
    assert batch.index[[0, 2, 3, 5]].tolist() == [0, 2, 3, 5]
    # Label and pixels are those of the image that stands in.
    assert batch.labels.tolist() == [images.labels[i] for i in batch.index]
    row = int(batch.index[1])
    whole_view = TwoViews(
        images,
        images.labels,
        ViewConfig(size=16, scale=(1, 1), ratio=(4 / 3, 4 / 3), jitter=0, grayscale_prob=0, blur=0, flip=0),
        0,
    )
    replaced, true = (whole_view.__getitems__([(0, i)]) for i in (1, int(batch.index[1])))
    assert replaced.index.item() == row
    assert torch.equal(replaced.q, true.q)


def test_good_images_have_the_same_views_beside_unreadable_ones(make_images: MakeImages) -> None:
    keys = [(0, i) for i in range(6)]
    good, mixed = (two_views(make_images([0] * 6, corrupt=c)).__getitems__(keys) for c in ([], [1, 4]))
    rows = [0, 2, 3, 5]
    assert torch.equal(good.q[rows], mixed.q[rows])
    assert torch.equal(good.k[rows], mixed.k[rows])


@pytest.fixture
def broken_folder(tmp_path: Path, china: Image) -> Path:
    """Five truncated JPEGs."""
    for i in range(5):
        data = cv2.imencode(".jpg", china[:64, :64])[1].tobytes()
        (tmp_path / f"photo{i}.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_unreadable_images_ends_with_a_readable_message(broken_folder: Path, workers: int) -> None:
    """Also across the border of a loader process, which pickles the error."""
    loader = train_loader(two_views(load_images([str(broken_folder)])), GlobalBatches(5, 4, 0, 0, 1), workers, CPU)
    with pytest.raises(
        CorruptImageError,
        match=rf"{MAX_REPLACEMENTS} images in a row cannot be read, the last: .*photo\d\.jpg: the JPEG",
    ):
        next(iter(loader))


def test_one_truncated_file_among_good_ones_is_named(broken_folder: Path, china: Image) -> None:
    for i in (0, 1, 2, 4):
        cv2.imwrite(str(broken_folder / f"photo{i}.jpg"), china[:64, :64])
    batch = next(iter(train_loader(two_views(load_images([str(broken_folder)])), GlobalBatches(5, 5, 0, 0, 1), 0, CPU)))
    assert batch.corrupt == {3: f"{broken_folder}/photo3.jpg: the JPEG ends early"}


def test_evaluation_never_replaces_an_unreadable_image(make_images: MakeImages) -> None:
    views = EvaluationViews(make_images([0, 1, 2], corrupt=[1]), 32)
    with pytest.raises(CorruptImageError, match=r"image1\.jpg: broken"):
        views[1]


def test_evaluation_views_are_those_of_the_images(make_images: MakeImages) -> None:
    images = make_images([0, 1, 2])
    views = EvaluationViews(images, 32)
    assert len(views) == 3
    for i in range(3):
        np.testing.assert_array_equal(views[i].numpy(), evaluation_view(images.read(i), 32))


# Options


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"workers": -1}, r"data\.workers=-1: must be 0 .* or more"),
        ({"max_corrupt": -0.1}, r"data\.max_corrupt=-0\.1: must be a fraction"),
        ({"max_corrupt": 2}, r"data\.max_corrupt=2: must be a fraction"),
    ],
)
def test_options_out_of_range_are_errors_that_name_them(option: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DataConfig(**option)


def test_default_loader_processes_share_the_cores_among_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(33)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(CPU) == 1
    assert default_workers(torch.device("cuda")) == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(torch.device("cuda")) == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "33")  # srun has given each rank cores of its own
    assert default_workers(torch.device("cuda")) == 32
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # one task of srun, in which torchrun has started the ranks
    assert default_workers(torch.device("cuda")) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert default_workers(torch.device("cuda")) == 1
