"""UniMoCo: query encoder, momentum (key) encoder, and queues of features, labels and image numbers.

Shapes: N images, C embedding width, K queue length, D feature width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.images import UNLABELLED
from pretrain.batch_norm import split_batch_norm
from pretrain.losses import LOSSES, LossFn, positives

Stem = Literal["imagenet", "cifar"]


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, queue and loss. Defaults: MoCo v2 / UniMoCo.

    Args:
        arch: any ResNet of timm: resnet18 ... resnet152, wide_resnet50_2, resnext50_32x4d ...
        stem: "imagenet": 7x7 stride 2 and max-pool; "cifar": 3x3 stride 1, no pool, for images of about 32 pixels.
        head: "mlp": two layers with a ReLU between (MoCo v2); "linear": one (MoCo v1).
        dim: width of the embedding, C.
        queue_size: number of keys in the queue, K.
        ema_momentum: share of the key encoder that stays at each step, m.
        loss: "unicon" (UniMoCo), "info_nce" (MoCo: labels unused), "supcon" (mean outside the logarithm),
            "supcon_in" (inside), or "cross_entropy": the supervised baseline, a classifier trained on the images
            that keep their label, with the same views, batches and number of steps.
        temperature: T of the loss.
        bn_groups: batch-norm groups in the global batch, on however many devices; keys are shuffled between
            them. 8 groups of 32 images are what the papers' 8 GPUs do.
        mask_same_image: leave keys of the query's own image in the queue out of the loss. "auto": when the queue
            is as long as the data set or longer.
    """

    arch: str = "resnet50"
    stem: Stem = "imagenet"
    head: Literal["mlp", "linear"] = "mlp"
    dim: int = 128
    queue_size: int = 65536
    ema_momentum: float = 0.999
    loss: Literal["unicon", "info_nce", "supcon", "supcon_in", "cross_entropy"] = "unicon"
    temperature: float = 0.2
    bn_groups: int = 8
    mask_same_image: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in ("dim", "queue_size", "bn_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.ema_momentum <= 1:
            raise ValueError(f"model.ema_momentum={self.ema_momentum}: lies between 0 and 1 (MoCo uses 0.999)")
        if not self.temperature > 0:
            raise ValueError(f"model.temperature={self.temperature}: must be above 0 (UniMoCo uses 0.2)")


def build_encoder(arch: str, stem: Stem = "imagenet") -> ResNet:
    """A timm ResNet with torchvision's names and initialisation and no classifier: images -> (N, D).

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
    """Projection head, (N, D) -> (N, C)."""
    if kind == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))


class UniMoCo(nn.Module):
    """Both encoders and the queues; the state is named as in MoCo: encoder_q.*, encoder_k.*, queue, ...

    `index_queue` holds the image number of each key, so that keys of a query's own image can be left out of the
    loss. All queues share `queue_ptr`, the place that is written next.
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

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Key parameters <- m * key + (1 - m) * query (arXiv 1911.05722, eq. 2). Buffers are not averaged."""
        self._ema(list(self.encoder_k.parameters()), list(self.encoder_q.parameters()), None)

    def loss(self, q: Tensor, k: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Mean loss of queries and own keys (n, C), with labels (n,) and image numbers (n,), on the queue."""
        return self.loss_fn(
            q,
            k,
            self.queue,
            labels,
            self.label_queue,
            self.config.temperature,
            ignore=self.same_image(index),
        )

    def same_image(self, index: Tensor) -> Tensor | None:
        """(n,) image numbers -> (n, K) bool: queue keys of the same image; None where that plays no role."""
        return index[:, None] == self.index_queue if self.mask_same_image else None

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor, index: Tensor) -> None:
        """Writes keys (n, C), labels (n,) and image numbers (n,) over the oldest entries, for any n.

        The pointer stays on the device, so nothing waits for it.
        """
        size, n = self.queue.shape[1], keys.shape[0]
        dropped = max(n - size, 0)  # of more than K keys the last K stay
        places = (self.queue_ptr + torch.arange(dropped, n, device=keys.device)) % size
        self.queue[:, places] = keys[dropped:].T.to(self.queue.dtype)
        self.label_queue[places] = labels[dropped:]
        self.index_queue[places] = index[dropped:]
        self.queue_ptr.copy_((self.queue_ptr + n) % size)

    @torch.no_grad()
    def statistics(self, q: Tensor, k: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """What the loss of these queries means; scalars on the device.

        `chance` is the loss when all similarities are equal, log(1 + negatives * positives); `embedding_std` is
        1 for embeddings spread over the sphere and 0 for a collapse.
        """
        is_pos = positives(labels, self.label_queue)
        if self.config.loss == "info_nce":
            is_pos = torch.zeros_like(is_pos)
        same = self.same_image(index)
        ignored = torch.zeros_like(is_pos) if same is None else same
        is_pos, is_neg = is_pos & ~ignored, ~is_pos & ~ignored
        n_pos, n_neg = is_pos.sum(1) + 1, is_neg.sum(1)
        similarity = q @ self.queue
        own = (q * k).sum(1)
        return {
            "chance": self._chance(n_pos.double(), n_neg.double()).mean(),
            "positives": n_pos.double().mean(),
            "sim_positive": (((similarity * is_pos).sum(1) + own) / n_pos).mean(),
            "sim_own_key": own.mean(),
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
