"""Compiled encoders compute what eager ones do, and a compiler that fails costs speed alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.batch_norm import SplitBatchNorm2d, set_groups, split_batch_norm
from pretrain.compilation import compile_encoders
from pretrain.config import Config, ModelConfig, OptimConfig, differing_keys
from pretrain.engine import Training, training_step
from pretrain.model import UniMoCo, build_encoder
from tests.pretrain.test_engine import CONFIG, CPU, batches, data


def training(compile_option: Any, **optim: Any) -> Training:
    config = replace(CONFIG, optim=replace(CONFIG.optim, compile=compile_option, **optim))
    torch.manual_seed(0)
    return Training(config, UniMoCo(config.model), CPU, 4)


@pytest.mark.parametrize("groups", [1, 8])
def test_an_encoder_is_one_graph(groups: int) -> None:
    """`fullgraph` raises where the compiler would have to leave Python code between two graphs."""
    encoder = split_batch_norm(build_encoder("resnet18", "cifar"))
    set_groups(encoder, groups)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert compiled(torch.randn(16, 3, 8, 8)).shape == (16, 512)


class TestSplitBatchNorm:
    """The form that is compiled against the eager one, which normalises group after group."""

    @pytest.mark.parametrize(("groups", "dtype", "tolerance"), [(2, torch.float32, 3e-6), (8, torch.bfloat16, 2e-2)])
    def test_both_forms_agree(self, groups: int, dtype: torch.dtype, tolerance: float) -> None:
        torch.manual_seed(1)
        eager = SplitBatchNorm2d(5)
        nn.init.normal_(eager.weight)
        nn.init.normal_(eager.bias)
        set_groups(eager, groups, micro_batches=2)
        fused = copy.deepcopy(eager)
        compiled = torch.compile(fused, backend="eager", fullgraph=True)
        for _ in range(2):
            x = (3 * torch.randn(16, 5, 4, 3) + 2).to(dtype).contiguous(memory_format=torch.channels_last)
            pair = [x.clone().requires_grad_(), x.clone().requires_grad_()]
            outputs = [eager(pair[0]), compiled(pair[1])]
            gradient = torch.randn(outputs[0].shape).to(dtype)
            for output in outputs:
                output.backward(gradient)
            assert outputs[0].dtype == outputs[1].dtype == dtype
            torch.testing.assert_close(outputs[0], outputs[1], rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(pair[0].grad, pair[1].grad, rtol=tolerance, atol=tolerance)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(eager, name), getattr(fused, name), rtol=1e-5, atol=1e-5)
        for a, b in zip(eager.parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=20 * tolerance)


class TestOption:
    def test_auto_is_eager_on_a_cpu(self) -> None:
        assert OptimConfig().compile == "auto"
        assert training("auto").compiled == "eager"

    def test_auto_continues_a_run_of_either_kind(self) -> None:
        auto, on, off = (Config(optim=OptimConfig(compile=c)).as_dict() for c in ("auto", True, False))
        assert differing_keys(off, auto) == differing_keys(auto, on) == []
        assert differing_keys(off, on) == ["optim.compile: False -> True"]

    def test_a_trial_leaves_weights_and_statistics_as_they_were(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nn.Module, "compile", lambda module, **_: None)
        tried, plain = training(True), training(False)
        assert (tried.compiled, plain.compiled) == ("compiled", "eager")
        for name, tensor in plain.model.state_dict().items():
            assert torch.equal(tried.model.state_dict()[name], tensor), name
        batch = batches(data(), steps=1)[0]
        losses = [training_step(t, batch)[0] for t in (tried, plain)]
        assert torch.equal(*losses)
        for a, b in zip(tried.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_a_compiler_that_fails_costs_speed_alone(
        self, accumulate: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_code(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
            raise NotImplementedError("no code for\nthis machine")

        def compile_in_place(module: Any) -> None:
            module._compiled_call_impl = torch.compile(module._call_impl, backend=no_code)

        monkeypatch.setattr(nn.Module, "compile", compile_in_place)
        failed, plain = training(True, accumulate=accumulate), training(False, accumulate=accumulate)
        assert failed.compiled == "eager"
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert line.startswith("warning: not compiled, training is slower (")
        assert "this machine" in line
        batch = batches(data(), steps=1)[0]
        assert torch.equal(training_step(failed, batch)[0], training_step(plain, batch)[0])
        for a, b in zip(failed.model.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_compilation_is_asked_of_every_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append((module, options)))
    t = training(True)
    assert [module for module, _ in asked] == [t.model.encoder_q, t.model.encoder_k]
    assert all(options == {} for _, options in asked)  # CUDA graphs are for GPUs
    compile_encoders(t)
    assert t.compiled == "compiled"
    assert ModelConfig().bn_groups == 8
