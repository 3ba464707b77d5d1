"""Lists of strings and paths in arrays behave as lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.strings import Paths, Strings

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8)


@given(texts, st.integers(-10, 10), st.slices(8))
def test_strings_are_those_of_a_list(given_texts: list[str], index: int, part: slice) -> None:
    strings = Strings(given_texts)
    assert strings == given_texts
    assert list(strings) == given_texts
    assert len(strings) == len(given_texts)
    assert strings[part] == given_texts[part]
    assert [text in strings for text in given_texts] == [True] * len(given_texts)
    if -len(given_texts) <= index < len(given_texts):
        assert strings[index] == given_texts[index]
    else:
        with pytest.raises(IndexError):
            strings[index]


@given(st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: not {0, 47} & set(b)), max_size=8))
def test_any_file_name_comes_back(names: list[bytes]) -> None:
    paths = [Path("/data", os.fsdecode(name)) for name in names]
    assert Paths(paths) == paths
    assert [os.fsencode(str(path)) for path in Paths(paths)] == [os.fsencode(path) for path in paths]


def test_an_image_in_memory_has_no_path() -> None:
    paths = Paths([None, Path("a/b.png"), None])
    assert list(paths) == [None, Path("a/b.png"), None]
    assert paths[1:] == [Path("a/b.png"), None]
    assert any(paths)
    assert not any(Paths([None, None]))
    assert not Paths()


def test_equality_and_hash() -> None:
    assert Strings(["a", "bc"]) == Strings(["a", "bc"])
    assert Strings(["a", "bc"]) != Strings(["ab", "c"])
    assert len({Strings(["a", "bc"]), Strings(["a", "bc"]), Strings(["ab", "c"])}) == 2


def test_memory_is_that_of_the_bytes_and_of_four_more_each() -> None:
    names = [f"n0144{i % 1000:04}/n0144{i % 1000:04}_{i}.JPEG" for i in range(10_000)]
    assert Strings(names).nbytes == sum(map(len, names)) + 4 * 10_001
