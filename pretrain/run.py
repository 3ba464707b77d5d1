"""A run of pre-training from its start, or from where it stopped, to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch

from common import distributed
from common.cli import NON_FINITE, StopRequest, say_last
from common.images import save_png
from common.loaders import Batch, GlobalBatches, train_loader
from common.prefetch import prefetch
from common.run_folder import RunFolder, exclusive
from pretrain.checkpoint import Checkpoints, find_checkpoint, restore
from pretrain.config import Config
from pretrain.data import TrainingData, load_data
from pretrain.engine import Training, training_step
from pretrain.model import build_model
from pretrain.monitor import SUMMARY, Monitor, NonFiniteError, finish, log_done, log_start
from pretrain.picture import views_sheet


def check_data(config: Config) -> int:
    """Look at every image, and print what there is; return the exit status."""
    distributed.start(config.device)
    checked = load_data(config).images.describe()
    if distributed.rank() == 0:
        print(f"pretrain: data check passed: {checked}, {config.monitor.holdout} held out")
    return 0


def pretrain(config: Config) -> int:
    """Do one run from its start, or from where it stopped, to its end; return the exit status."""
    device = distributed.start(config.device)
    path = Path(config.runs, str(config.name))
    try:
        with exclusive(path, "wait for it, or give another --name"):
            return run(config, device, RunFolder(path))
    except NonFiniteError as error:
        say_last(f"pretrain: stopped: {error}")
        return NON_FINITE


def run(config: Config, device: torch.device, folder: RunFolder) -> int:
    """Do the run of a folder that no other process uses; return the exit status."""
    began, saved = time.time(), find_checkpoint(config, folder.path)
    data = load_data(config)
    images = len(data.images)
    model = build_model(config, images, len(data.images.classes))
    t = Training(config, model, device, steps_per_epoch=images // config.optim.batch)
    if saved:
        restore(t, saved)
        if t.step == t.steps and (folder.path / SUMMARY).exists():  # it is finished, and its folder stays as it is
            log_done(t, saved["progress"]["knn"], folder.path)
            return 0
    batches = GlobalBatches(images, config.optim.batch, config.seed, t.step, t.steps)
    loader = train_loader(data.views, batches, config.data.workers, device)
    folder.start(config.as_dict(), device, t.step, data.kept.text)
    log_start(t, data, folder.path)
    monitor = Monitor(t, folder, saved and saved["progress"])
    checkpoints = Checkpoints(t, monitor, data, folder.path)
    if t.step == 0 and distributed.rank() == 0:
        save_png(views_sheet(data.views), folder.path / "views.png")
    with StopRequest() as stop:
        train(t, data, loader, monitor, checkpoints, stop)
    monitor.close()
    folder.close()
    distributed.barrier()
    if distributed.rank() == 0:
        finish(t, monitor.knn, folder.path, checkpoints.meta, time.time() - began)
    return 0 if t.step == t.steps else 128 + (stop.signal or signal.SIGTERM)


def train(
    t: Training,
    data: TrainingData,
    loader: Iterable[Batch],
    monitor: Monitor,
    checkpoints: Checkpoints,
    stop: StopRequest,
) -> None:
    """Train from t.step to the last step, or until a signal asks to stop; measure, save and log on the way."""
    c, alone = t.config, distributed.world_size() == 1
    if t.step == 0 and not monitor.knn:
        monitor.evaluate(data.knn)
    batches = stop.until(prefetch(loader, t.device), ends_wait=alone)
    stopping = False
    while t.step < t.steps and not stopping:  # one epoch, or what is left of it
        began = t.step
        for batch in monitor.time_loading(islice(batches, t.steps_left_in_epoch)):
            lr, due = t.set_learning_rate(), monitor.due(t.step + 1)
            loss, statistics = training_step(t, batch, measure=due)
            t.step += 1
            monitor.observe(lr, loss)
            monitor.add_corrupt(batch.corrupt, len(data.images), c.data.max_corrupt)
            if due:
                monitor.report(statistics)
            if not alone and t.step % distributed.AGREE_EVERY == 0:
                t.average_statistics()  # as saving would, if this is where they stop: a stop must not change a digit
            stopping = distributed.stop_agreed(stop.signal is not None, t.step, t.device)
            if stopping:
                break
            if checkpoints.due() and not t.epoch_ended:
                checkpoints.save()
        stopping |= alone and stop.signal is not None  # also where no step was done: a batch was waited for
        if t.epoch_ended and t.step > began:
            monitor.check_finite()
            if t.epochs_passed(c.monitor.knn_every) or t.step == t.steps:
                monitor.evaluate(data.knn)
            if t.epochs_passed(c.checkpoint.keep_every):
                checkpoints.save(f"epoch_{round(t.epoch):04d}.pth")
        if stopping or checkpoints.due():
            checkpoints.save()
