"""The walk over folders of images, compared with a plain-loop specification on random trees, and what it says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.folders import walk
from common.images import load_images
from tests.common.pictures import write

fault = pytest.mark.fault
ALL = ("pretrain", "knn", "linear", "finetune", "svm")

IMAGES = [
    "a.png",
    "B.JPG",
    "caf\udce9.png",
    "tab\there.png",
    "line\nbreak.jpeg",
    "\u2028.bmp",
    "x" * 251 + ".png",
    "-.tif",
]
HIDDEN = [".x.png", "._a.png", ".DS_Store", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "Thumbs.db"]
OTHERS = ["a.gif", "b.avif", "c.heic", "d.npy", "notes.txt", "README", "a.png:Zone.Identifier", "e.jxl"]
FOLDERS = ["cat", "dog", "caf\udce9", "a.png ", "deep", "new\nline"]


class Tree:
    """Folders, files and links in a temporary folder: `root` is walked, `outside` stands beside it."""

    def __init__(self, base: Path) -> None:
        self.folders = [base / "root", base / "outside", base]
        for folder in self.folders[:2]:
            folder.mkdir()
        self.root = base / "root"

    def add(self, kind: str, parent: int, other: int, name: int) -> None:
        """Make one entry in a folder made before; names that are taken are left alone."""
        names = {"image": IMAGES, "hidden file": HIDDEN, "hidden folder": HIDDEN, "other": OTHERS}.get(kind, FOLDERS)
        path = self.folders[parent % len(self.folders)] / names[name % len(names)]
        if os.path.lexists(path):
            return
        target = self.folders[other % len(self.folders)]
        if kind == "link to a folder":
            path.symlink_to(target if other % 2 else os.path.relpath(target, path.parent))
        elif kind == "link to a file":
            path = path.with_name(IMAGES[name % len(IMAGES)])
            (target / "README").touch()
            if not os.path.lexists(path):
                path.symlink_to(target / "README")
        elif "folder" in kind:
            path.mkdir()
            self.folders.append(path)
            (path / "inside.png").touch()
        else:
            path.touch()


def left_behind(name: str) -> bool:
    return name[0] == "." or name in HIDDEN


def encloses(outer: str, inner: str) -> bool:
    return Path(outer) in (Path(inner), *Path(inner).parents)


def specified(root: Path) -> tuple[list[str], int, int, int]:
    """Return the real files of images, and the numbers of hidden entries, loops and further paths to a folder.

    A folder is read if it is the root, lies in a folder that is read, or is the target of a link there that encloses
    neither the link nor the root. Found by repeating until nothing is added.
    """
    start = os.path.realpath(root)
    read = {start}
    while True:
        images, hidden, loops, ways = [], 0, 0, 0
        more = set()
        for folder in read:
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                target = os.path.realpath(path)
                if left_behind(name):
                    hidden += 1
                elif (
                    os.path.isdir(path)
                    and os.path.islink(path)
                    and (encloses(target, folder) or encloses(target, start))
                ):
                    loops += 1
                elif os.path.isdir(path):
                    ways += 1
                    more.add(target)
                elif name.lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".tif")):
                    images.append(path)
        if more <= read:
            return sorted(images), hidden, loops, ways - (len(read) - 1)
        read |= more


KINDS = ["image", "folder", "link to a folder", "link to a file", "hidden file", "hidden folder", "other"]
entries = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.integers(0, 7)), max_size=25
)


@given(entries)
@example([("folder", 0, 0, 0), ("link to a folder", 3, 0, 1), ("link to a folder", 3, 2, 4)])
@settings(max_examples=300, deadline=None)
def test_random_trees_are_walked_as_specified(made: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        tree = Tree(Path(base))
        for kind, parent, other, name in made:
            tree.add(kind, parent, other, name)
        found = walk(tree.root)
        images, hidden, loops, again = specified(tree.root)
        real = [
            os.path.join(os.path.realpath(os.path.dirname(tree.root / n)), os.path.basename(n)) for n in found.images
        ]
        assert sorted(real) == images
        assert (found.hidden.total(), len(found.loops), len(found.again)) == (hidden, loops, again)
        for name in found.images:  # a file that has a path without links is named by it
            real_name = os.path.join(os.path.realpath(os.path.dirname(tree.root / name)), os.path.basename(name))
            if encloses(os.path.realpath(tree.root), real_name) and not any(map(left_behind, Path(real_name).parts)):
                assert os.path.relpath(real_name, os.path.realpath(tree.root)) == name


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """train/cat/0.png, 1.png and train/dog/0.png, 1.png."""
    for value, name in enumerate(("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")):
        write(tmp_path / "train" / name, value)
    return tmp_path / "train"


PETS = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]


# Links


@pytest.mark.parametrize("place", ["loop", "cat/loop", "cat/deep/loop"])
@pytest.mark.parametrize("target", ["..", "../..", "../../.."])
def test_a_link_to_an_enclosing_folder_is_left_out_and_told(
    pets: Path, place: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(pets.parent / "val/cat/9.png")
    link = pets / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(os.path.realpath(link.parent / target[3:]))
    images = load_images([str(pets)])
    assert images.names == PETS
    assert images.classes == ["cat", "dog"]
    told = capsys.readouterr().err
    assert told == f"{pets}: 4 images; left out: 1 links to folders that are read anyway ({place})\n"


def test_links_to_folders_elsewhere_are_followed(pets: Path) -> None:
    write(pets.parent / "store/owls/8.png", 8)
    (pets / "owl").symlink_to(pets.parent / "store/owls")
    (pets / "cat/more").symlink_to("../../store/owls/../cats")
    write(pets.parent / "store/cats/7.png", 7)
    (pets / "dog/2.png").symlink_to(pets.parent / "store/owls/8.png")
    images = load_images([str(pets)])
    assert images.names == ["cat/0.png", "cat/1.png", "cat/more/7.png", *PETS[2:], "dog/2.png", "owl/8.png"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert images.read(6)[0, 0, 0] == 8


def test_a_source_may_itself_be_a_link_or_hidden(pets: Path) -> None:
    pets.rename(pets.parent / ".hidden")
    (pets.parent / "link").symlink_to(".hidden")
    assert load_images([str(pets.parent / "link")]).names == load_images([str(pets.parent / ".hidden")]).names == PETS


@pytest.mark.parametrize(("link", "to"), [("kitten", "cat"), ("dog/friends", "../cat")])
def test_one_folder_in_two_classes_is_refused(pets: Path, link: str, to: str) -> None:
    (pets / link).symlink_to(to)
    with pytest.raises(ValueError, match=f"train/{link} and .*train/cat are one folder: .* two classes"):
        load_images([str(pets)])
    assert load_images([f"flat:{pets}"]).names == PETS


def test_one_folder_twice_in_a_class_is_read_once(pets: Path) -> None:
    write(pets / "cat/z/2.png")
    (pets / "cat/a").symlink_to("z")
    assert load_images([str(pets)]).names == ["cat/0.png", "cat/1.png", "cat/z/2.png", *PETS[2:]]


@pytest.mark.parametrize("name", ["cat/2.png", "owl", "cat/more"])
@pytest.mark.parametrize("target", ["/not/mounted", "itself"])
def test_a_broken_link_is_refused(pets: Path, name: str, target: str) -> None:
    (pets / name).symlink_to(os.path.basename(name) if target == "itself" else target)
    with pytest.raises(
        ValueError, match=rf"train/{name}: a link to .* that cannot be followed .*images would be missing"
    ):
        load_images([str(pets)])


# What is left out


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("where", ["", "cat/"])
def test_what_is_hidden_or_left_behind_is_no_image_and_no_class(
    pets: Path, name: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pets / f"{where}{name}"
    write(path if path.suffix == ".png" else path / "9.png")
    images = load_images([str(pets)])
    assert images.names == PETS
    assert images.classes == ["cat", "dog"]
    assert f"4 images; left out: 1 hidden or left behind by a system ({name} 1)" in capsys.readouterr().err


def test_other_formats_and_other_files_are_counted_by_suffix(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        (pets / f"cat/{i}.GIF").touch()
    for name in (
        "cat/a.avif",
        "dog/b.heic",
        "dog/c.jxl",
        "dog/0.txt",
        "dog/0.png:Zone.Identifier",
        "list",
        "dog/pipe.png",
    ):
        os.mkfifo(pets / name) if "pipe" in name else (pets / name).touch()
    assert load_images([str(pets)]).names == PETS
    told = capsys.readouterr().err
    assert "4 images; left out: 6 images in a format that is not read (.gif 3, " in told
    assert "4 files that are no images (" in told
    found = walk(pets)
    assert found.other_formats == {".gif": 3, ".avif": 1, ".heic": 1, ".jxl": 1}
    assert found.other_files == {".txt": 1, ".identifier": 1, "no suffix": 1, ".png": 1}


def test_nothing_is_said_where_nothing_is_left_out(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_images([str(pets)])
    assert capsys.readouterr().err == ""


def test_what_is_left_out_is_told_once_however_often_it_is_read(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "cat/.x.png").touch()
    for _ in range(3):
        load_images([str(pets)])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_images_beside_class_folders_are_told(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(pets / "stray.png")
    assert load_images([f"folders:{pets}"]).names == PETS
    assert "train: 4 images; left out: 1 images beside the class folders\n" in capsys.readouterr().err


def test_a_class_folder_without_images_is_told_or_refused(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "owl/empty").mkdir(parents=True)
    assert load_images([str(pets)]).classes == ["cat", "dog"]
    assert "train/owl: a class folder without images; fill it or remove it (1 of 3)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="train/owl: a class folder without images"):
        load_images([str(pets)], complete=True)


@pytest.mark.parametrize("other", ["Cat", "CAT", "cafe\u0301"])
def test_class_names_that_differ_in_case_or_form_alone_are_told(
    pets: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(pets / "caf\u00e9/0.png")
    write(pets / other / "0.png")
    assert len(load_images([str(pets)]).classes) == 4
    assert "are two classes; is one a slip of the other?" in capsys.readouterr().err


# Parts of a data set are no classes


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "TEST"), ("train", "val", "other"), ("training",)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_root_of_train_and_val_is_refused_and_the_right_path_named(
    tmp_path: Path, names: tuple[str, ...], labelled: bool
) -> None:
    for name in names:
        for label in ("cat", "dog") if labelled else ("",):
            write(tmp_path / "root" / name / label / "0.png")
    root = tmp_path / "root"
    with pytest.raises(ValueError, match=rf"{root}: .* no classes: name {root}/{names[0]} \(or write folders:{root}"):
        load_images([str(root)])
    assert load_images([f"folders:{root}"]).classes == sorted(names)
    if labelled:
        assert load_images([f"{root}/{names[0]}"]).classes == ["cat", "dog"]


def test_train_and_test_inside_of_each_class_are_refused(pets: Path) -> None:
    for name in ("train/a.png", "test/b.png"):
        write(pets / "cat" / name)
    with pytest.raises(ValueError, match=r"train/cat: test, train are parts of a data set .*name .*train/cat/train"):
        load_images([str(pets)])


def test_a_train_is_a_vehicle(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        write(tmp_path / name / "0.png")
    assert load_images([str(tmp_path)]).classes == ["bus", "car", "train"]


# Folders that cannot be read


def refuse_to_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let os.scandir of a folder fail, as for a user without permission."""
    scandir = os.scandir

    def refusing(path: str = ".") -> object:
        if os.path.realpath(path) == os.path.realpath(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("name", ["", "cat", "cat/deep"])
@pytest.mark.parametrize("kind", ["", "folders:", "flat:"])
def test_a_folder_that_cannot_be_read_is_refused(
    pets: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pets / "cat/deep").mkdir()
    refuse_to_read(pets / name, monkeypatch)
    with pytest.raises(
        ValueError, match=rf"{pets / name}/?: cannot be read \(Permission denied\): images would be missing"
    ):
        load_images([f"{kind}{pets}"])


def as_nobody(work: Callable[[], object]) -> str:
    """Return the error of `work`, done by a process of a user without rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            work()
        except ValueError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_a_folder_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory() as base:  # pytest's own folders are closed to others
        os.chmod(base, 0o755)
        for name in ("cat", "dog"):
            write(Path(base, name, "0.png"))
        assert as_nobody(lambda: load_images([base])) == ""
        os.chmod(Path(base, "dog"), 0)
        assert as_nobody(lambda: load_images([base])).startswith(f"{base}/dog: cannot be read (Permission denied)")
        os.chmod(Path(base, "dog"), 0o755)
