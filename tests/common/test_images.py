"""Sources of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision

from common.images import ImageSet, load_images
from tests.common.pictures import write


def named_labels(images: ImageSet) -> dict[str, str | None]:
    """Image name -> class name."""
    return {
        name: None if label == -1 else images.classes[label]
        for name, label in zip(images.names, images.labels, strict=True)
    }


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """cat/1.png, cat/2.png, dog/deep/3.png."""
    for value, name in enumerate(("cat/1.png", "cat/2.png", "dog/deep/3.png")):
        write(tmp_path / "train" / name, value)
    return tmp_path / "train"


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """a.png, b.PNG and a text file."""
    write(tmp_path / "flat/a.png", 10)
    write(tmp_path / "flat/b.png", 11).rename(tmp_path / "flat/b.PNG")
    (tmp_path / "flat/notes.txt").write_text("no image")
    return tmp_path / "flat"


# Sources


@pytest.mark.parametrize("kind", ["", "folders:"])
def test_class_folders_take_images_at_any_depth(class_folders: Path, kind: str) -> None:
    images = load_images([f"{kind}{class_folders}"])
    assert named_labels(images) == {"cat/1.png": "cat", "cat/2.png": "cat", "dog/deep/3.png": "dog"}
    assert images.classes == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["", "flat:"])
def test_flat_folder_has_no_labels_and_leaves_other_files(flat_folder: Path, kind: str) -> None:
    images = load_images([f"{kind}{flat_folder}"])
    assert named_labels(images) == {"a.png": None, "b.PNG": None}
    assert images.classes == []


def test_flat_takes_class_folders_without_their_labels(class_folders: Path) -> None:
    images = load_images([f"flat:{class_folders}"])
    assert named_labels(images) == {"cat/1.png": None, "cat/2.png": None, "dog/deep/3.png": None}


def test_reading_gives_the_pixels_of_the_named_file(class_folders: Path, flat_folder: Path) -> None:
    images = load_images([str(class_folders), str(flat_folder)])
    values = {name: int(images.read(i)[0, 0, 0]) for i, name in enumerate(images.names)}
    assert values == {"cat/1.png": 0, "cat/2.png": 1, "dog/deep/3.png": 2, "a.png": 10, "b.PNG": 11}


def test_class_folders_agree_with_torchvision(class_folders: Path) -> None:
    ours, theirs = load_images([str(class_folders)]), torchvision.datasets.ImageFolder(str(class_folders))
    assert ours.classes == theirs.classes
    assert ours.labels.tolist() == theirs.targets
    for i, (image, _) in enumerate(theirs):
        np.testing.assert_array_equal(ours.read(i), np.asarray(image))


def test_labelled_and_unlabelled_sources_mix(class_folders: Path, flat_folder: Path) -> None:
    images = load_images([str(flat_folder), str(class_folders)])
    assert images.labels.tolist() == [-1, -1, 0, 0, 1]


def test_classes_of_the_same_name_are_one_class_over_all_sources(class_folders: Path, tmp_path: Path) -> None:
    write(tmp_path / "more/dog/9.png")
    write(tmp_path / "more/ant/8.png")
    images = load_images([str(class_folders), str(tmp_path / "more")])
    assert images.classes == ["ant", "cat", "dog"]
    assert images.labels.tolist() == [1, 1, 2, 0, 2]


def test_classes_named_by_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "100", "0"):
        write(tmp_path / name / "x.png")
    assert load_images([str(tmp_path)]).classes == ["0", "9", "10", "100"]


def test_one_class_that_is_no_number_makes_the_order_alphabetical(tmp_path: Path) -> None:
    for name in ("10", "9", "other"):
        write(tmp_path / name / "x.png")
    assert load_images([str(tmp_path)]).classes == ["10", "9", "other"]


def test_labels_are_int64_so_that_unlabelled_stays_minus_one(data_root: str, flat_folder: Path) -> None:
    images = load_images(["fashion:test", str(flat_folder)], data_root)
    assert images.labels.dtype == np.int64
    assert images.labels.min() == -1
    assert images.labels.max() == 9
    assert (images.labels == -1).sum() == 2


def test_fashion_has_the_published_sizes_classes_and_pixels(data_root: str) -> None:
    images = load_images(["fashion:test"], data_root)
    theirs = torchvision.datasets.FashionMNIST(data_root, train=False)
    assert np.bincount(images.labels).tolist() == [1000] * 10
    for i in (0, 17, 9999):
        image, label = theirs[i]
        np.testing.assert_array_equal(images.read(i), np.asarray(image.convert("RGB")))
        assert images.classes[images.labels[i]] == theirs.classes[label]
    assert images.names[17] == "test/00017"


def test_pixels_come_from_the_right_source_when_fashion_is_in_the_middle(data_root: str, flat_folder: Path) -> None:
    images = load_images([str(flat_folder), "fashion:test", str(flat_folder)], data_root)
    assert len(images) == 10004
    assert [int(images.read(i)[0, 0, 0]) for i in (0, 1, 10002, 10003)] == [10, 11, 10, 11]
    assert images.read(2).shape == images.read(10001).shape == (28, 28, 3)


def test_subset_keeps_names_labels_and_pixels_together(class_folders: Path) -> None:
    subset = load_images([str(class_folders)]).subset(np.array([2, 0])).subset(np.array([1, 0, 0]))
    assert subset.names == ["cat/1.png", "dog/deep/3.png", "dog/deep/3.png"]
    assert subset.labels.tolist() == [0, 1, 1]
    assert [int(subset.read(i)[0, 0, 0]) for i in range(3)] == [0, 2, 2]


# Manifests


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str], str]:
    """Writes a manifest beside the images x.png, sub/y.png and `two words.png`."""
    for value, name in enumerate(("x.png", "sub/y.png", "two words.png")):
        write(tmp_path / name, value)

    def make(text: str, encoding: str = "utf-8") -> str:
        (tmp_path / "list.tsv").write_bytes(text.encode(encoding))
        return str(tmp_path / "list.tsv")

    return make


def test_manifest_labels_blank_and_minus_one(manifest: Callable[..., str]) -> None:
    images = load_images([manifest("x.png\tcat\n\nsub/y.png\t-1\ntwo words.png\t \nx.png\nx.png\t dog \n")])
    labels = [None if label == -1 else images.classes[label] for label in images.labels]
    assert images.names == ["x.png", "sub/y.png", "two words.png", "x.png", "x.png"]
    assert labels == ["cat", None, None, None, "dog"]
    assert images.read(1)[0, 0, 0] == 1


def test_manifest_takes_absolute_paths_windows_line_ends_and_a_byte_order_mark(
    manifest: Callable[..., str], tmp_path: Path
) -> None:
    images = load_images([manifest(f"x.png\tcat\r\n{tmp_path}/sub/y.png\tdog\r\n", "utf-8-sig")])
    assert images.classes == ["cat", "dog"]
    assert images.read(1)[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("x.png\tcat\nnot-there.png\tcat\n", 2, "no such image: .*not-there.png"),
        ("x.png\tcat\n\nx.png\tcat\tdog\n", 3, "more than one tab"),
        ("\tcat\n", 1, "no such image"),
    ],
)
def test_manifest_errors_name_file_and_line(manifest: Callable[..., str], text: str, line: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"list\.tsv:{line}: {complaint}"):
        load_images([manifest(text)])


def test_an_image_given_as_a_manifest_is_reported_as_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.png: not a text file"):
        load_images([str(write(tmp_path / "x.png"))])


# The class map


def test_class_map_fixes_numbers_and_may_hold_absent_classes(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\n\nzebra\ncat\n")
    images = load_images([str(class_folders)], classes=str(tmp_path / "classes.txt"))
    assert images.classes == ["dog", "zebra", "cat"]
    assert images.labels.tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("text", "complaint"), [("cat\n", r"train/dog: label 'dog' is not in"), ("cat\ndog\ncat\n", "class 'cat' .* twice")]
)
def test_class_map_errors(class_folders: Path, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load_images([str(class_folders)], classes=str(tmp_path / "classes.txt"))


def test_class_map_error_of_a_manifest_names_file_and_line(manifest: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"list\.tsv:2: label 'bird' is not in the class map .*classes\.txt"):
        load_images([manifest("x.png\tcat\nx.png\tbird\n")], classes=str(tmp_path / "classes.txt"))


def test_missing_class_map_is_an_error(class_folders: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.classes=/nowhere\.txt: no such file"):
        load_images([str(class_folders)], classes="/nowhere.txt")


# Mistakes in the sources


def test_no_source_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"name at least one source.*--data\.train"):
        load_images([])


@pytest.mark.parametrize("kind", ["", "folders:", "flat:", "manifest:"])
def test_missing_path_is_an_error_for_every_kind(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/nowhere: no such file or folder"):
        load_images([f"{kind}{tmp_path}/nowhere"])


@pytest.mark.parametrize("kind", ["", "folders:", "flat:"])
def test_folder_without_images_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty/sub").mkdir(parents=True)
    (tmp_path / "empty/readme.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty: no images here \(looked for \.jpg"):
        load_images([f"{kind}{tmp_path}/empty"])


def test_empty_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("\n\n")
    with pytest.raises(ValueError, match=r"list\.tsv: no images here"):
        load_images([str(tmp_path / "list.tsv")])


def test_one_empty_source_among_good_ones_is_an_error(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images here"):
        load_images([str(class_folders), str(tmp_path / "empty")])


def test_images_both_here_and_below_are_ambiguous(class_folders: Path) -> None:
    write(class_folders / "stray.png")
    with pytest.raises(ValueError, match=r"both here and in sub-folders; write flat:.* or folders:"):
        load_images([str(class_folders)])
    assert len(load_images([f"folders:{class_folders}"])) == 3
    assert len(load_images([f"flat:{class_folders}"])) == 4


@pytest.mark.parametrize(
    ("source", "complaint"), [("fashion:", "use fashion:train"), ("fashion:val", "fashion:val: use")]
)
def test_unknown_fashion_split_is_an_error(data_root: str, source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_images([source], data_root)


# Identity


def test_equal_names_with_other_pixels_are_another_data_set(
    make_images: Callable[..., ImageSet], class_folders: Path
) -> None:
    images = make_images([0, 1, -1])
    inverted = replace(images, read=lambda i: 255 - images.read(i))
    assert images.identity == make_images([0, 1, -1]).identity != inverted.identity
    before = load_images([str(class_folders)]).identity
    write(class_folders / "cat/1.png", 99)
    assert load_images([str(class_folders)]).identity != before


def test_identity_depends_on_names_classes_and_number_but_not_on_the_place(class_folders: Path, tmp_path: Path) -> None:
    images = load_images([str(class_folders)])
    relabelled = replace(images, labels=images.labels[::-1].copy())
    renamed = replace(images, names=["x", *images.names[1:]])
    assert len({s.identity for s in (images, relabelled, renamed, images.subset(np.arange(2)))}) == 4
    class_folders.rename(tmp_path / "elsewhere")
    assert load_images([str(tmp_path / "elsewhere")]).identity == images.identity


def test_identity_of_many_files_reads_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or b"x")
    paths = [tmp_path / f"{i}.png" for i in range(50_000)]
    images = ImageSet([path.name for path in paths], np.full(50_000, -1), [], lambda i: np.empty(0), list(paths))
    assert images.identity
    assert len(read) == len(set(read)) == 1024
    assert {paths[0], paths[-1]} <= set(read)


def test_a_file_that_cannot_be_read_has_an_identity(class_folders: Path) -> None:
    images = load_images([str(class_folders)])
    (class_folders / "cat/1.png").unlink()
    assert images.identity
