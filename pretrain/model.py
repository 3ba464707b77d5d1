"""What is pre-trained: UniMoCo and its relatives on a queue of keys, and the supervised baseline.

Shapes: N global batch, n this rank's part of it, C embedding width, K queue length, D feature width.
"""

from __future__ import annotations

import copy
import math

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.distributed import all_gather, rank, to_device, world_size
from common.images import UNLABELLED
from common.loaders import Batch
from pretrain.batch_norm import all_to_all, shuffle, split_batch_norm
from pretrain.config import CROSS_ENTROPY, Config, ModelConfig, Stem
from pretrain.engine import Model, Training
from pretrain.losses import LOSSES, LossFn, positives


def build_model(config: Config, images: int, classes: int) -> Model:
    """Return the model of a configuration, initialised from its seed.

    Args:
        config: its `model` and `seed` count.
        images: size of the training set.
        classes: number of classes, for the supervised baseline.
    """
    torch.manual_seed(config.seed)
    c = config.model
    if c.loss == CROSS_ENTROPY:
        return Classifier(c, classes)
    mask = c.mask_same_image == "always" or (c.mask_same_image == "auto" and c.queue_size >= images)
    return UniMoCo(c, mask)


def build_encoder(arch: str, stem: Stem = "imagenet") -> ResNet:
    """Return a timm ResNet with torchvision's names and initialisation and no classifier: images -> (n, D).

    Raises:
        ValueError: timm has no such architecture, it is no ResNet, or its stem is already a special one.
    """
    if arch not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{arch.split('_')[0]}*")[:6]) or "resnet18, resnet50"
        raise ValueError(f"model.arch={arch}: timm has no such model; near: {near}")
    if timm.model_entrypoint(arch).__module__ != "timm.models.resnet":
        raise ValueError(f"model.arch={arch}: not a ResNet; use one such as resnet50")
    # timm starts each residual branch at zero; torchvision, and so MoCo, does not.
    encoder: ResNet = timm.create_model(arch, pretrained=False, num_classes=0, zero_init_last=False)
    if stem == "cifar":
        if not isinstance(encoder.conv1, nn.Conv2d):
            raise ValueError(f"model.stem=cifar: {arch} has a deep stem of its own; use resnet18 ... resnet152")
        encoder.conv1 = nn.Conv2d(3, encoder.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
        encoder.maxpool = nn.Identity()
    return encoder


def build_head(kind: str, features: int, dim: int) -> nn.Module:
    """Return a projection head, (n, D) -> (n, C): "linear" (MoCo v1) or "mlp" (MoCo v2)."""
    if kind == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))


def embed(t: Training, encoder: nn.Module, views: Tensor) -> Tensor:
    """Return the embeddings of views (n, S, S, 3) uint8: (n, C) fp32, L2-normalised."""
    return F.normalize(t.encode(encoder, views).float(), dim=1)


class UniMoCo(Model):
    """Query encoder, key encoder and the queues of keys, labels and image indices (arXiv 2103.10773).

    The state is named as in MoCo: encoder_q.*, encoder_k.*, queue ... `index_queue` holds the image of each key, so
    that keys of a query's own image can be left out of the loss. `queue_ptr` is the position that is written next.

    A step of a training loop of one's own, in one process:

    >>> from pretrain import ModelConfig, UniMoCo
    >>> model = UniMoCo(ModelConfig(arch="resnet18", queue_size=64, bn_groups=1))
    >>> views, other_views = torch.randn(2, 4, 3, 32, 32)  # of four images
    >>> labels, index = torch.tensor([0, 0, 1, -1]), torch.arange(4)  # -1: no label
    >>> model.update_key_encoder()
    >>> q = F.normalize(model.encoder_q(views), dim=1)
    >>> with torch.no_grad():
    ...     k = F.normalize(model.encoder_k(other_views), dim=1)
    >>> loss = model.loss(q, k, labels, index)
    >>> loss.backward()  # then optimizer.step()
    >>> model.enqueue(k, labels, index)
    >>> model.label_queue[:4]
    tensor([ 0,  0,  1, -1])

    Args:
        config: encoder, queue and loss.
        mask_same_image: leave keys of the query's own image out of the loss.
    """

    queue: Tensor
    label_queue: Tensor
    index_queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: ModelConfig, mask_same_image: bool = False) -> None:
        super().__init__()
        self.config = config
        self.mask_same_image = mask_same_image
        encoder = build_encoder(config.arch, config.stem)
        encoder.fc = build_head(config.head, encoder.num_features, config.dim)
        self.encoder_q = split_batch_norm(encoder)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.loss_fn: LossFn = LOSSES[config.loss]
        self.register_buffer("queue", F.normalize(torch.randn(config.dim, config.queue_size), dim=0))
        self.register_buffer("label_queue", torch.full((config.queue_size,), UNLABELLED, dtype=torch.int64))
        self.register_buffer("index_queue", torch.full((config.queue_size,), -1, dtype=torch.int64))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self._ema = get_ema_multi_avg_fn(config.ema_momentum)  # one fused call over all tensors

    def training_step(self, t: Training, batch: Batch, measure: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradients of a batch and put its keys into the queue; see `Model`.

        The keys of the global batch come first. Then the queries, in micro-batches, against their positive keys and
        the queue as it was before this batch.
        """
        labels, index = (x.to(t.device, non_blocking=True) for x in (batch.labels, batch.index))
        n = len(labels)
        self.update_key_encoder()
        keys = self.encode_keys(t, batch.k)
        k = keys[rank() * n : (rank() + 1) * n]
        mean, queries = torch.zeros((), device=t.device), []
        for part, output in t.micro_batches(batch.q):
            q = F.normalize(output.float(), dim=1)
            mean += t.backward(self.loss(q, k[part], labels[part], index[part]))
            queries.append(q.detach())
        statistics = self.statistics(torch.cat(queries), k, labels, index) if measure else {}
        self.enqueue(keys, *all_gather(torch.stack([labels, index], dim=1)).unbind(1))
        return mean, statistics

    @torch.no_grad()
    def encode_keys(self, t: Training, views: Tensor) -> Tensor:
        """Return the keys of the global batch, (N, C), in its order, from this rank's key views (n, S, S, 3) uint8.

        The images are shuffled to other batch-norm groups and ranks, encoded there, and their keys gathered.
        """
        order = shuffle(len(views) * world_size(), self.config.bn_groups, (t.config.seed, t.step))
        shuffled = all_to_all(views.to(t.device, non_blocking=True), order)
        parts = [embed(t, self.encoder_k, part) for part in shuffled.chunk(t.config.optim.accumulate)]
        return all_gather(torch.cat(parts))[to_device(order.argsort(), t.device)]

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Set key parameters to m * key + (1 - m) * query (arXiv 1911.05722, eq. 2). Buffers are not averaged."""
        self._ema(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), None)

    def loss(self, q: Tensor, k: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Return the mean loss of queries and positive keys (n, C), labels (n,), image indices (n,) on the queue."""
        temperature, ignore = self.config.temperature, self.same_image(index)
        return self.loss_fn(q, k, self.queue, labels, self.label_queue, temperature, ignore=ignore)

    def same_image(self, index: Tensor) -> Tensor | None:
        """Return which keys of the queue are of the same image, (n, K) bool; None where they are not masked."""
        return index[:, None] == self.index_queue if self.mask_same_image else None

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor, index: Tensor) -> None:
        """Write keys (N, C), labels (N,) and image indices (N,) over the oldest entries, for any N.

        The pointer stays on the device, so nothing waits for it.
        """
        size, n = self.queue.shape[1], keys.shape[0]
        dropped = max(n - size, 0)  # of more than K keys the last K stay
        positions = (self.queue_ptr + torch.arange(dropped, n, device=keys.device)) % size
        self.queue[:, positions] = keys[dropped:].T.to(self.queue.dtype)
        self.label_queue[positions] = labels[dropped:]
        self.index_queue[positions] = index[dropped:]
        self.queue_ptr.copy_((self.queue_ptr + n) % size)

    @torch.no_grad()
    def statistics(self, q: Tensor, k: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return what the loss of these queries means; scalars on the device.

        `chance` is the loss when all similarities are equal, for UniCon log(1 + negatives * positives);
        `embedding_std` is 1 for embeddings spread over the sphere and 0 for a collapse.
        """
        is_pos = positives(labels, self.label_queue)
        if self.config.loss == "info_nce":
            is_pos = torch.zeros_like(is_pos)
        same = self.same_image(index)
        ignored = torch.zeros_like(is_pos) if same is None else same
        is_pos, is_neg = is_pos & ~ignored, ~is_pos & ~ignored
        n_pos, n_neg = is_pos.sum(1) + 1, is_neg.sum(1)
        similarity = q @ self.queue
        to_positive_key = (q * k).sum(1)
        return {
            "chance": self._chance(n_pos.double(), n_neg.double()).mean(),
            "positives": n_pos.double().mean(),
            "sim_positive": (((similarity * is_pos).sum(1) + to_positive_key) / n_pos).mean(),
            "sim_positive_key": to_positive_key.mean(),
            "sim_negative": ((similarity * is_neg).sum(1) / n_neg.clamp_min(1)).mean(),
            "embedding_std": q.std(0, correction=0).mean() * q.shape[1] ** 0.5,
            "queue_fill": (self.index_queue >= 0).double().mean(),
            "queue_labelled": (self.label_queue != UNLABELLED).double().mean(),
            "batch_labelled": (labels != UNLABELLED).double().mean(),
        }

    def _chance(self, n_pos: Tensor, n_neg: Tensor) -> Tensor:
        if self.config.loss == "unicon":
            return torch.log1p(n_neg * n_pos)
        if self.config.loss == "info_nce":
            return torch.log1p(n_neg)
        return torch.log(n_neg + n_pos)


class Classifier(Model):
    """The supervised baseline: cross-entropy on the images that keep their label, all else as in UniMoCo.

    Encoder, query views, batch-norm groups, optimiser and schedule are those of a contrastive run of the same
    configuration; the projection head is replaced by a linear classifier.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        encoder = build_encoder(config.arch, config.stem)
        encoder.fc = nn.Linear(encoder.num_features, classes)
        self.encoder_q = split_batch_norm(encoder)

    def training_step(self, t: Training, batch: Batch, measure: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradients of the query views of a batch, all of them labelled; see `Model`."""
        labels = batch.labels.to(t.device, non_blocking=True)
        mean, outputs = torch.zeros((), device=t.device), []
        for part, logits in t.micro_batches(batch.q):
            mean += t.backward(F.cross_entropy(logits.float(), labels[part]))
            outputs.append(logits.detach())
        return mean, self.statistics(torch.cat(outputs), labels) if measure else {}

    @torch.no_grad()
    def statistics(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return what the loss means; scalars. `chance` is the loss when all classes are equally likely."""
        return {
            "chance": torch.full((), math.log(logits.shape[1]), device=logits.device),
            "batch_top1": (logits.argmax(1) == labels).double().mean(),
        }
