"""Which images keep their label, up to the batches that reach the loss."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.images import ImageSet, load_images
from common.labels import LabelConfig, choose_balanced, keep_labels
from common.loaders import GlobalBatches, TwoViews
from common.transforms import ViewConfig

RATIO = st.floats(0, 1)
SEED = st.integers(0, 2**32)


@st.composite
def label_arrays(draw: st.DrawFn) -> np.ndarray:
    """Labels of unequal classes, some of them of one image, in random order, some images unlabelled."""
    sizes = draw(st.lists(st.integers(0, 40), max_size=9))
    labels = np.repeat(np.arange(-1, len(sizes)), [draw(st.integers(0, 20)), *sizes])
    return np.random.default_rng(draw(SEED)).permutation(labels).astype(np.int64)


# A share and a seed


@given(label_arrays(), RATIO, SEED)
def test_the_ratio_of_the_labelled_images_is_chosen(labels: np.ndarray, ratio: float, seed: int) -> None:
    chosen = choose_balanced(labels, ratio, seed)
    assert len(chosen) == len(np.unique(chosen)) == round(ratio * int((labels != -1).sum()))
    assert (labels[chosen] != -1).all()
    assert (np.diff(chosen) > 0).all()


@given(label_arrays(), RATIO, SEED)
def test_each_class_gives_its_share_rounded_down_or_up(labels: np.ndarray, ratio: float, seed: int) -> None:
    chosen = choose_balanced(labels, ratio, seed)
    for label in np.unique(labels[labels != -1]):
        share = len(chosen) * (labels == label).sum() / (labels != -1).sum()
        assert abs((labels[chosen] == label).sum() - share) < 1


@given(label_arrays(), RATIO, RATIO, SEED)
def test_a_smaller_ratio_chooses_among_the_images_of_a_larger(
    labels: np.ndarray, one: float, other: float, seed: int
) -> None:
    small, large = (set(choose_balanced(labels, ratio, seed)) for ratio in sorted((one, other)))
    assert small <= large


def test_ratios_nest_where_largest_remainders_would_not() -> None:
    """Rounding by largest remainders takes images away from the third class as the ratio grows (Alabama paradox)."""
    labels = np.repeat([0, 1, 2], [6, 6, 2])
    chosen = [set(choose_balanced(labels, m / 14, 0)) for m in range(15)]
    assert [len(c) for c in chosen] == list(range(15))
    assert all(small < large for small, large in itertools.pairwise(chosen))


def test_a_long_tail_of_small_classes_leaves_the_large_class_its_share() -> None:
    labels = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 201)])
    chosen = labels[choose_balanced(labels, 0.4, 0)]
    assert (chosen == 0).sum() in (400, 401)
    assert len(chosen) == 480


@given(label_arrays(), RATIO, SEED)
def test_the_choice_depends_on_labels_ratio_and_seed_alone(labels: np.ndarray, ratio: float, seed: int) -> None:
    first = choose_balanced(labels, ratio, seed)
    np.random.default_rng().random(3)
    np.testing.assert_array_equal(first, choose_balanced(labels.copy(), ratio, seed))


def test_another_seed_chooses_other_images() -> None:
    labels = np.repeat(np.arange(10), 100)
    one, other = (set(choose_balanced(labels, 0.1, seed)) for seed in (0, 1))
    assert len(one & other) < 30  # 10 of 100 would be expected to meet


def test_every_image_of_a_class_is_as_likely() -> None:
    times = np.bincount(np.concatenate([choose_balanced(np.zeros(20, np.int64), 0.25, seed) for seed in range(800)]))
    # Binomial with mean 200 and standard deviation 12.2: five of them to either side.
    assert times.min() > 138
    assert times.max() < 262


def test_a_tenth_of_unequal_classes_as_in_imagenet() -> None:
    sizes = np.random.default_rng(0).integers(732, 1301, 100)
    counts = np.bincount(np.repeat(np.arange(100), sizes)[choose_balanced(np.repeat(np.arange(100), sizes), 0.1, 0)])
    assert counts.sum() == round(0.1 * sizes.sum())
    assert np.abs(counts - 0.1 * sizes).max() < 1.001


@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan")])
def test_a_ratio_outside_0_to_1_is_an_error(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"labels\.ratio={ratio}: must be a fraction"):
        LabelConfig(ratio=ratio)


def test_kept_labels_are_the_images_own(make_images: Callable[..., ImageSet]) -> None:
    images = make_images([0, 1, 2, -1] * 25)
    kept = keep_labels(images, LabelConfig(ratio=0.4, seed=3))
    labelled = kept.labels != -1
    assert labelled.sum() == 30
    np.testing.assert_array_equal(kept.labels[labelled], images.labels[labelled])
    assert kept.names == sorted(np.array(images.names)[labelled])
    assert (images.labels == -1).sum() == 25  # the image set itself stays as it was


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (1.0, 75)])
def test_none_and_all(make_images: Callable[..., ImageSet], ratio: float, count: int) -> None:
    assert (keep_labels(make_images([0, 1, 2, -1] * 25), LabelConfig(ratio)).labels != -1).sum() == count


def test_images_without_any_label_need_no_special_care(make_images: Callable[..., ImageSet]) -> None:
    kept = keep_labels(make_images([-1] * 5, classes=0), LabelConfig())
    assert kept.labels.tolist() == [-1] * 5
    assert kept.text == ""


# A list file


@pytest.fixture
def listed(make_images: Callable[..., ImageSet], tmp_path: Path) -> Callable[..., np.ndarray]:
    """Labels that a list file's text keeps; by default of 6 images folder{i % 2}/image{i}.jpg, the last unlabelled."""

    def keep(text: str, images: ImageSet | None = None) -> np.ndarray:
        (tmp_path / "list.txt").write_text(text)
        return keep_labels(
            images or make_images([0, 1, 2, 0, 1, -1]), LabelConfig(list=str(tmp_path / "list.txt"))
        ).labels

    return keep


def test_a_list_names_images_by_file_name_or_relative_path(listed: Callable[..., np.ndarray]) -> None:
    text = "image1.jpg\nfolder0/image2.jpg\n\n  image4.jpg  \n"
    assert listed(text).tolist() == [-1, 1, 2, -1, 1, -1]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_list_keeps_no_label(listed: Callable[..., np.ndarray], text: str) -> None:
    assert listed(text).tolist() == [-1] * 6


def test_a_list_with_windows_line_ends_and_byte_order_mark(listed: Callable[..., np.ndarray]) -> None:
    assert listed("\ufeffimage0.jpg\r\nimage1.jpg\r\n").tolist() == [0, 1, -1, -1, -1, -1]


def test_the_published_format_for_imagenet(tmp_path: Path, listed: Callable[..., np.ndarray]) -> None:
    """One base name a line; the class comes from the folder."""
    for name in ("n01440764/n01440764_10026.JPEG", "n01440764/n01440764_10027.JPEG", "n03794056/n03794056_10253.JPEG"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    images = load_images([str(tmp_path / "train")])
    assert listed("n03794056_10253.JPEG\nn01440764_10026.JPEG\n", images).tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image0.jpg\n\nimage7.jpg\n", r"list\.txt:3: 'image7\.jpg' is not among the 6 images"),
        ("folder0/image1.jpg\n", r"list\.txt:1: 'folder0/image1\.jpg' is not among"),
        ("image0.jpg\nimage5.jpg\n", r"list\.txt:2: 'image5\.jpg' has no label"),
        ("image0.jpg\nimage1.jpg\nfolder0/image0.jpg\n", r"list\.txt:3: .* repeats line 1"),
    ],
)
def test_list_errors_name_file_and_line(listed: Callable[..., np.ndarray], text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        listed(text)


def test_a_file_name_in_two_folders_is_ambiguous(listed: Callable[..., np.ndarray]) -> None:
    images = ImageSet(["a/x.jpg", "b/x.jpg"], np.array([0, 1]), ["a", "b"], lambda _: np.empty((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"list\.txt:1: 'x\.jpg' is ambiguous \(a/x\.jpg, b/x\.jpg\); give its"):
        listed("x.jpg\n", images)
    assert listed("b/x.jpg\n", images).tolist() == [-1, 1]


def test_a_missing_list_is_an_error_and_not_all_labels(make_images: Callable[..., ImageSet]) -> None:
    with pytest.raises(ValueError, match=r"labels\.list=/nowhere\.txt: no such file"):
        keep_labels(make_images([0, 1]), LabelConfig(list="/nowhere.txt"))


def test_an_image_given_as_a_list_is_reported_as_no_text(make_images: Callable[..., ImageSet], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(ValueError, match=r"x\.png: not a text file"):
        keep_labels(make_images([0, 1]), LabelConfig(list=str(tmp_path / "x.png")))


def test_ratio_and_list_are_not_given_together(make_images: Callable[..., ImageSet], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("image0.jpg\n")
    with pytest.raises(ValueError, match=r"labels\.ratio=0\.5 and labels\.list=.*list\.txt: give only one of them"):
        keep_labels(make_images([0, 1]), LabelConfig(ratio=0.5, list=str(tmp_path / "list.txt")))


# What is written and what reaches the loss


def test_the_written_list_chooses_the_same_labels(
    make_images: Callable[..., ImageSet], listed: Callable[..., np.ndarray]
) -> None:
    images = make_images([0, 1, 2, -1] * 25)
    kept = keep_labels(images, LabelConfig(ratio=0.3, seed=5))
    np.testing.assert_array_equal(listed(kept.text, images), kept.labels)


def test_the_hash_is_that_of_the_written_list(make_images: Callable[..., ImageSet]) -> None:
    kept = keep_labels(make_images([1, 0, 2, 0]), LabelConfig())
    text = "folder0/image0.jpg\nfolder0/image2.jpg\nfolder1/image1.jpg\nfolder1/image3.jpg\n"
    assert kept.text == text
    assert kept.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_choice_on_fashion_stays_the_same_over_versions(data_root: str) -> None:
    """A fixed hash: a changed choice would make runs of different versions incomparable without a word."""
    kept = keep_labels(load_images(["fashion:train"], data_root), LabelConfig(ratio=0.1, seed=0))
    assert np.bincount(kept.labels[kept.labels != -1]).tolist() == [600] * 10
    assert kept.sha256 == "708327da9f6d27228d0e392675d492b62aee5a433fee72d92305d125d435402a"


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 1.0])
def test_the_number_of_labels_that_reach_the_loss_is_exact(make_images: Callable[..., ImageSet], ratio: float) -> None:
    images = make_images([0, 1, 2, 1, -1] * 8)
    kept = keep_labels(images, LabelConfig(ratio=ratio))
    dataset = TwoViews(images, kept.labels, ViewConfig(size=8), seed=0)
    batches = [dataset.__getitems__(keys) for keys in GlobalBatches(40, 10, seed=0, start=0, stop=4)]
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    index = np.concatenate([batch.index.numpy() for batch in batches])
    assert (labels != -1).sum() == round(ratio * 32)
    np.testing.assert_array_equal(labels, kept.labels[index])
    assert all((label == -1 or label == images.labels[i]) for label, i in zip(labels, index, strict=True))
