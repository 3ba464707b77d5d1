"""SGD for a CPU: the results of torch's, without the copies of its fused call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from pretrain.sgd import HostSGD

OPTIONS: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-2, "fused": True}


def network() -> nn.Module:
    """3 x 3 and 1 x 1 convolutions, one of them grouped, and weights of one and two dimensions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 2)).to(memory_format=torch.channels_last)


def optimise(net: nn.Module, optimizer: torch.optim.SGD, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        net(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def ours(net: nn.Module) -> HostSGD:
    optimizer = HostSGD(net.parameters(), **OPTIONS)
    for p in net.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    net = network()
    return net, copy.deepcopy(net)


def test_weights_equal_those_of_torch_bit_for_bit_also_from_its_checkpoint(nets: tuple[nn.Module, nn.Module]) -> None:
    net, reference = nets
    theirs = torch.optim.SGD(reference.parameters(), **OPTIONS)
    plain = ours(net)
    optimise(reference, theirs, range(3))
    optimise(net, plain, range(3))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), reference.parameters(), strict=True))
    again = ours(net)
    again.load_state_dict(copy.deepcopy(theirs.state_dict()))  # it would share the momentum
    optimise(reference, theirs, range(3, 6))
    optimise(net, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), reference.parameters(), strict=True))
    assert [*again.state_dict()["state"][0]] == [*theirs.state_dict()["state"][0]] == ["momentum_buffer"]


def test_no_gradient_is_copied(nets: tuple[nn.Module, nn.Module]) -> None:
    net, _ = nets
    optimizer = ours(net)
    optimise(net, optimizer, range(1))
    net(torch.ones(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)).mean().backward()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        optimizer.step()
    assert not [event.name for event in seen.events() if event.name in ("aten::clone", "aten::copy_")]
