"""Entry of pre-training: `bash pretrain/run.sh [--recipe NAME] [--option value ...]`."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.cli import NON_FINITE, StopRequest, run_cli
from common.files import write_text
from common.images import UNLABELLED, CorruptImageError, ImageSet, load_images, save_png
from common.labels import KeptLabels, choose_balanced, keep_labels
from common.loaders import GlobalBatches, TwoViews, train_loader
from common.run_folder import RunFolder, git_state
from pretrain import checkpoint
from pretrain.config import Config, backbone_id, differing_keys, method, parse
from pretrain.engine import Training, fit
from pretrain.monitor import Knn, Monitor, NonFiniteError, say
from pretrain.picture import views_sheet
from pretrain.supervised import CROSS_ENTROPY, Classifier, labelled_only
from pretrain.unimoco import UniMoCo

SUMMARY = "summary.json"  # in the folder of a run that has finished


def main(arguments: list[str] | None = None) -> int:
    """Run pre-training.

    Returns:
        0 when done; 2 for a user's mistake; 3 when the loss is not finite; 128 + signal number (143, 130) when stopped
        by SIGTERM or SIGINT, with the state saved.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return run_cli("pretrain", lambda: pretrain(parse(given)), resumable=False, also=(CorruptImageError,))
    except NonFiniteError as error:
        print(f"pretrain: stopped: {error}", file=sys.stderr)
        return NON_FINITE
    finally:
        distributed.stop()


def pretrain(config: Config) -> int:
    """One run from start, or from where it stopped, to its end."""
    device = distributed.start(config.device)
    began = time.time()
    folder = RunFolder(Path(config.runs) / str(config.name))
    saved = resume_from(config, folder.path)
    images, kept, knn = load_data(config)
    seen = labelled_only(images, kept) if config.model.loss == CROSS_ENTROPY else (images, kept.labels)
    t = build(config, images, kept, device)
    if saved:
        restore(t, saved)
        if t.step == t.steps and (folder.path / SUMMARY).exists():  # finished before: its folder stays as it is
            say_done(t, saved["progress"]["knn"], folder)
            return 0
    folder.start(config.as_dict(), device, t.step, kept.text)
    describe(t, images, kept, folder)
    monitor = Monitor(config.monitor, folder, device, config.optim.batch, t.steps, t.step, saved and saved["progress"])
    meta = describe_checkpoint(t, images, kept)

    def save(name: str | None = None) -> None:
        identity = {"backbone_id": backbone_id(config, images, kept, t.epoch)}
        save_checkpoint(t, monitor, meta | identity, folder.path, name)

    def evaluate() -> None:
        if knn is not None:
            t.average_statistics()
            monitor.measure_knn(t.step, t.epoch, lambda: knn(t.model.encoder_q, device))

    def after_epoch() -> None:
        if is_due(t, config.monitor.knn_every) or t.step == t.steps:
            evaluate()
        if is_due(t, config.checkpoint.keep_every):
            save(f"epoch_{round(t.epoch):04d}.pth")

    batches = GlobalBatches(len(images), config.optim.batch, config.seed, t.step, t.steps)
    dataset = TwoViews(*seen, config.views, config.seed)
    if t.step == 0 and distributed.rank() == 0:
        save_png(views_sheet(dataset), folder.path / "views.png")
    loader = train_loader(dataset, batches, config.data.workers, device)
    with StopRequest() as stop:
        if t.step == 0:
            evaluate()
        done = fit(t, loader, monitor, stop, save, after_epoch, len(images))
    if done and t.steps % t.steps_per_epoch and str(t.step) not in monitor.knn:
        evaluate()
        save()
    monitor.close()
    folder.close()
    distributed.barrier()
    if distributed.rank() == 0:
        finish(t, monitor, folder, done, time.time() - began, meta)
    return 0 if done else 128 + (stop.signal or signal.SIGTERM)


def load_data(config: Config) -> tuple[ImageSet, KeptLabels, Knn | None]:
    """Training images, the labels that they keep, and the kNN measurement (None where nothing has labels)."""
    everything = load_images(config.data.sources, config.data.root, config.data.classes)
    images, held_out, m = everything, None, config.monitor
    if m.images is not None:
        held_out = load_images([m.images], config.data.root, config.data.classes)
    elif m.holdout:
        share = m.holdout / max(int((everything.labels != UNLABELLED).sum()), 1)
        if share >= 1:
            raise ValueError(f"monitor.holdout={m.holdout}: more than the labelled images there are")
        chosen = choose_balanced(everything.labels, share, seed=0)
        held_out = everything.subset(chosen)
        images = everything.subset(np.setdiff1d(np.arange(len(everything)), chosen))
    kept = keep_labels(images, config.labels)
    if held_out is None or not len(held_out.classes):
        return images, kept, None
    return images, kept, Knn(images, held_out, m, config.views.size, config.data.workers)


def build(config: Config, images: ImageSet, kept: KeptLabels, device: torch.device) -> Training:
    """Model, optimiser and precision, from the seed."""
    torch.manual_seed(config.seed)
    mask = config.model.mask_same_image
    model: UniMoCo | Classifier
    if config.model.loss == CROSS_ENTROPY:
        model = Classifier(config.model, len(images.classes))
    else:
        model = UniMoCo(config.model, mask == "always" or (mask == "auto" and config.model.queue_size >= len(images)))
    steps_per_epoch = len(images) // config.optim.batch
    GlobalBatches(len(images), config.optim.batch, config.seed, 0, 1)  # says what does not fit
    return Training(config, model, device, steps_per_epoch)


def resume_from(config: Config, folder: Path) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None.

    Raises:
        ValueError: the run exists and must not be touched; its configuration differs; no checkpoint is readable.
    """
    if config.resume not in ("auto", "never"):
        content = checkpoint.load(Path(config.resume))
    else:
        found = checkpoint.find_last(folder)
        if found is None:
            return None
        if config.resume == "never":
            raise ValueError(f"{folder} holds a run already: give another --name, or --resume auto to go on")
        content, path, complaints = found
        for complaint in complaints:
            say(f"warning: {complaint}")
        if complaints:
            say(f"warning: going on from {path}")
    different = differing_keys(content["config"], config.as_dict())
    if different:
        raise ValueError(
            f"{folder} was run with another configuration ({'; '.join(different)}): give another --name, "
            "or the old options to go on"
        )
    return content


def restore(t: Training, saved: dict[str, Any]) -> None:
    """Puts a checkpoint's state into the training."""
    t.model.load_state_dict(saved["state_dict"])
    t.optimizer.load_state_dict(saved["optimizer"])
    t.scaler.load_state_dict(saved["scaler"])
    t.step = saved["step"]
    if not checkpoint.restore_random_states(saved["rng"]) or len(saved["rng"]) != distributed.world_size():
        say(
            f"warning: saved by {len(saved['rng'])} processes, resumed by {distributed.world_size()}: "
            "the same experiment, but not to the last bit"
        )


def is_due(t: Training, every: float) -> bool:
    """Whether a multiple of `every` epochs was passed by the last epoch; 0 = never."""
    return every > 0 and int(t.epoch / every) > int((t.epoch - 1) / every)


def describe_checkpoint(t: Training, images: ImageSet, kept: KeptLabels) -> dict[str, Any]:
    """What a reader of the checkpoint wants to know of it; builtins."""
    c = t.config
    labelled = int((kept.labels != UNLABELLED).sum())
    return {
        "method": method(c),
        "arch": c.model.arch,
        "stem": c.model.stem,
        "image_size": c.views.size,
        "label_ratio": labelled / len(kept.labels),
        "labelled": labelled,
        "images": len(kept.labels),
        "labels_sha256": kept.sha256,
        "planned_epochs": c.optim.epochs,
        "seed": c.seed,
        "label_seed": c.labels.seed,
        "data": images.identity,
        **git_state(),
    }


def save_checkpoint(t: Training, monitor: Monitor, meta: dict[str, Any], folder: Path, name: str | None) -> None:
    """Writes last.pth (or `name`) on rank 0; called by all ranks."""
    t.average_statistics()
    content = {
        "format": checkpoint.FORMAT,
        "version": checkpoint.VERSION,
        "state_dict": t.model.state_dict(),
        "meta": {**meta, "epochs": t.epoch, "step": t.step},
        "optimizer": t.optimizer.state_dict(),
        "scaler": t.scaler.state_dict(),
        "rng": checkpoint.random_states(),
        "step": t.step,
        "config": t.config.as_dict(),
        "progress": monitor.state(),
    }
    if distributed.rank() == 0:
        if name is None:
            checkpoint.save_last(folder, content)
        else:
            checkpoint.write_atomically(folder / name, lambda path: torch.save(content, path))


def describe(t: Training, images: ImageSet, kept: KeptLabels, folder: RunFolder) -> None:
    """Says what is about to run."""
    c, labelled = t.config, int((kept.labels != UNLABELLED).sum())
    parameters = sum(p.numel() for p in t.model.encoder_q.parameters())
    contrastive = c.model.loss != CROSS_ENTROPY
    say(
        f"{c.model.arch} ({parameters / 1e6:.1f} M parameters with its head), "
        f"loss {c.model.loss}" + (f", T {c.model.temperature:g}" if contrastive else "")
    )
    say(
        f"{len(images)} training images, {labelled} keep their label ({labelled / len(images):.1%}, "
        f"{len(images.classes)} classes, list {kept.sha256[:12]})"
    )
    say(
        f"base lr {c.optim.base_lr:g} per 256 images x batch {c.optim.batch} = lr {c.optim.lr:g}; "
        f"{t.steps} steps, {c.optim.epochs:g} epochs"
    )
    say(
        f"{t.device} x {distributed.world_size()}, {t.dtype or 'fp32'}, {c.model.bn_groups} batch-norm groups of "
        f"{c.optim.batch // c.model.bn_groups} images" + (", keys shuffled between them" if contrastive else "")
    )
    if contrastive and c.model.bn_groups == 1:
        say("warning: one batch-norm group: queries and keys share statistics, which the network can exploit")
    if contrastive and c.model.queue_size >= len(images):
        masked = "are left out of the loss" if t.model.mask_same_image else "count as negatives of unlabelled queries"
        say(
            f"warning: the queue ({c.model.queue_size}) holds the whole data set ({len(images)} images): old keys of a "
            f"query's own image {masked}; "
            f"--model.queue_size {2 ** int(np.log2(max(len(images) / 4, 1)))} would suit better"
        )
    say(f"run folder {folder.path}" + (f", going on at step {t.step}" if t.step else ""))


def finish(t: Training, monitor: Monitor, folder: RunFolder, done: bool, seconds: float, meta: dict[str, Any]) -> None:
    """Says how it ended and what to do next, and leaves summary.json."""
    if not done:
        last = folder.path / checkpoint.LAST
        say(f"stopped at step {t.step} of {t.steps}; saved in {last}. The same command goes on from there.")
        return
    summary = {
        **meta,
        "epochs": t.epoch,
        "step": t.step,
        "seconds_since_last_start": round(seconds, 1),
        "knn": monitor.knn,
    }
    write_text(folder.path / SUMMARY, json.dumps(summary, indent=2) + "\n")
    say_done(t, monitor.knn, folder)


def say_done(t: Training, knn: dict[str, float], folder: RunFolder) -> None:
    """Says what came out and what to do next."""
    last, values = folder.path / checkpoint.LAST, list(knn.values())
    say(f"done: {t.steps} steps, checkpoint {last}")
    if values:
        say(f"kNN on held-out images: {values[0]:.2%} before, {values[-1]:.2%} after")
    python = this_python()
    say(f"next: {python} transfer/knn.py --ckpt {last}    or    {python} converters/convert.py {last} --to detectron2")


def this_python() -> str:
    """What to type for the Python that runs: `python` where that is it, else its path from here."""
    here, found = Path(sys.executable), shutil.which("python")
    if found and Path(found) == here:
        return "python"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


if __name__ == "__main__":
    sys.exit(main())
