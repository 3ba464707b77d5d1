"""The supervised baseline: a plain loop, two processes, resuming, unlabelled images, its checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.features import network_input
from common.images import ImageSet
from common.labels import KeptLabels, LabelConfig, keep_labels
from common.loaders import Batch, GlobalBatches, TwoViews
from converters import read_backbone
from pretrain.config import Config
from pretrain.data import labelled_only
from pretrain.engine import Training, training_step
from pretrain.model import Classifier
from pretrain.train import main
from tests.common.gloo import run_two
from tests.pretrain import test_engine as engine
from tests.pretrain import test_train as command

folder = command.folder
MakeImages = Callable[..., ImageSet]
CONFIG = replace(
    engine.CONFIG,
    labels=LabelConfig(ratio=1.0),
    model=replace(engine.CONFIG.model, loss="cross_entropy"),
    optim=replace(engine.CONFIG.optim, base_lr=0.01),
)


def start(config: Config = CONFIG) -> Training:
    torch.manual_seed(config.seed)
    return Training(config, Classifier(config.model, 10), engine.CPU, engine.IMAGES // config.optim.batch)


def some_batches(config: Config = CONFIG) -> list[Batch]:
    return engine.batches(engine.data(config), config.optim.batch)


def kept(labels: list[int]) -> KeptLabels:
    return KeptLabels(np.array(labels, dtype=np.int64), [])


def test_a_step_is_that_of_a_plain_loop() -> None:
    """One batch-norm group, so that plain batch norm computes the same; momentum and weight decay are torch's."""
    config = replace(CONFIG, model=replace(CONFIG.model, bn_groups=1))
    t, plain = start(config), start(config).model.encoder_q
    optimizer = torch.optim.SGD(plain.parameters(), config.optim.lr, 0.9, weight_decay=1e-4)
    for batch in some_batches(config):
        loss, statistics = training_step(t, batch, measure=True)
        logits = plain(network_input(batch.q, engine.CPU))
        theirs = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        theirs.backward()
        assert float(statistics["grad_norm"]) == pytest.approx(
            float(torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])), rel=1e-2
        )
        optimizer.step()
        assert float(loss) == pytest.approx(float(theirs), rel=1e-3)
        assert float(statistics["batch_top1"]) == pytest.approx(
            float((logits.argmax(1) == batch.labels).double().mean())
        )
        assert float(statistics["chance"]) == pytest.approx(np.log(10))
    first = next(name for name, _ in plain.named_parameters())
    torch.testing.assert_close(t.model.encoder_q.get_parameter(first), plain.get_parameter(first), rtol=1e-2, atol=1e-4)


def test_micro_batches_give_the_step_of_the_whole_batch() -> None:
    results = []
    for parts in (1, 2):
        t = start(replace(CONFIG, optim=replace(CONFIG.optim, accumulate=parts)))
        loss, _ = training_step(t, some_batches()[0])
        results.append((float(loss), t.model.encoder_q.fc.weight.detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def steps() -> dict[str, Any]:
    """Losses of this rank and the classifier after some steps."""
    t = start()
    losses = [training_step(t, batch)[0] for batch in some_batches()]
    return {"losses": torch.stack(losses), "head": t.model.encoder_q.fc.weight.detach().clone()}


@pytest.mark.ddp
def test_two_processes_give_the_steps_of_one() -> None:
    alone, two = steps(), run_two(steps)
    torch.testing.assert_close((two[0]["losses"] + two[1]["losses"]) / 2, alone["losses"], rtol=1e-2, atol=1e-3)
    for result in two:
        torch.testing.assert_close(result["head"], alone["head"], rtol=2e-2, atol=2e-4)


class TestUnlabelledImages:
    def test_are_never_seen_and_the_schedule_stays(self, make_images: MakeImages) -> None:
        images = make_images([0, 1, 2, 0, 1, 2, 0])
        seen, labels = labelled_only(images, kept([0, -1, 2, -1, 1, -1, -1]))
        assert len(seen) == 7
        assert [seen.names[i] for i in range(7)] == [images.names[i] for i in (0, 2, 4, 0, 2, 4, 0)]
        assert labels.tolist() == [0, 2, 1, 0, 2, 1, 0]

    def test_with_every_label_nothing_changes(self, make_images: MakeImages) -> None:
        images = make_images([0, 1, 2])
        seen, labels = labelled_only(images, keep_labels(images, LabelConfig()))
        assert (seen.names, labels.tolist()) == (images.names, [0, 1, 2])

    def test_their_pixels_do_not_matter(self, make_images: MakeImages) -> None:
        images, some = make_images([0, 1] * 16), kept([0, 1, -1, -1] * 8)
        other = replace(images, read=lambda i: images.read(i if some.labels[i] >= 0 else i + 40))
        views: list[Tensor] = []
        for given in (images, other):
            dataset = TwoViews(*labelled_only(given, some), CONFIG.views, seed=0)
            views.append(dataset.__getitems__(next(iter(GlobalBatches(32, 32, 0, 0, 1)))).q)
        assert torch.equal(views[0], views[1])

    def test_a_repeated_image_gets_other_views(self, make_images: MakeImages) -> None:
        images = make_images([0, 1, 0, 1])
        dataset = TwoViews(*labelled_only(images, kept([0, -1, -1, -1])), CONFIG.views, seed=0)
        batch = dataset.__getitems__([(0, 0), (0, 1)])
        assert batch.labels.tolist() == [0, 0]
        assert not torch.equal(batch.q[0], batch.q[1])


# The command


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bits_and_converters_read_it(folder: Path, tmp_path: Path) -> None:
    runs = {name: command.options(folder, tmp_path / name, model__loss="cross_entropy") for name in ("whole", "cut")}
    command.finish(command.start(runs["whole"]))
    process = command.start(runs["cut"])
    command.wait_for_step(process, tmp_path / "cut" / "r", 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output = command.finish(command.start(runs["cut"]))
    command.assert_same_run(tmp_path / "whole" / "r", tmp_path / "cut" / "r")
    assert "kNN on held-out images" in output
    assert "shuffled" not in output
    backbone = read_backbone(str(tmp_path / "whole" / "r" / "last.pth"))
    assert backbone.meta["method"] == "cross_entropy"
    state = command.weights(tmp_path / "whole" / "r")
    assert torch.equal(backbone.tensors["layer4.1.conv2.weight"], state["encoder_q.layer4.1.conv2.weight"])
    assert not [name for name in state if not name.startswith("encoder_q.")]


def test_without_labels_it_is_refused_and_nothing_is_left(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.options(folder, tmp_path, model__loss="cross_entropy", labels__ratio=0)) == 2
    assert "no image keeps its label; raise --labels.ratio" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
