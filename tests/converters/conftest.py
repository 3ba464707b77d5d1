"""Checkpoints of ResNet-18, each made once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.converters import samples


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Return a function from a key of samples.SAMPLES to a file of that format."""
    folder = tmp_path_factory.mktemp("samples")

    def make(name: str, arch: str = "resnet18") -> Path:
        path = folder / f"{list(samples.SAMPLES).index(name)}-{arch}{samples.SAMPLES[name].suffix}"
        if not path.exists():
            samples.write(samples.SAMPLES[name], arch, path)
        return path

    yield make
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def emptied(tmp_path: Path) -> Iterator[None]:
    """Leave no checkpoints behind: pytest keeps the folders of three runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def moco(sample: Callable[..., Path]) -> dict[str, Tensor]:
    """Return the state_dict of a MoCo checkpoint without its key encoder, for tests to damage."""
    state = torch.load(sample("MoCo v1"), weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if "encoder_k" not in key}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that saves something as broken.pth."""

    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "broken.pth")
        return tmp_path / "broken.pth"

    return write
