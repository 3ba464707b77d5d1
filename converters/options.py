"""Options that say how a checkpoint is read and for what it is written; without the packages that do it."""

from jsonargparse import ArgumentParser

TARGETS = ("detectron2", "openmmlab", "mmdet", "torchvision", "timm")  # those of converters.targets


def add_reading_options(p: ArgumentParser) -> None:
    """Add the options that say which weights of a checkpoint are read, and into which network."""
    p.add_argument(
        "--weights", type=str,
        help="which weights of a checkpoint that holds several sets: ema or model, query or key, student or teacher, "
        "online or momentum; by default those that its authors transfer",
    )  # fmt: skip
    p.add_argument("--arch", type=str, help="the network, where the checkpoint does not say which of several it is")
