"""Memory of the list of ImageNet's 1,281,167 training images, in the process that reads it and in loader processes.

    python tests/benchmarks/bench_index.py [--record results/benchmarks/index.jsonl]

The list is compared with one of Python strings and paths. A loader process is forked and reads every name and path;
what it then has for itself is its private memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.images import ImageSet
from common.run_folder import environment
from common.strings import Paths, Strings

IMAGES, CLASSES = 1_281_167, 1000


def private_bytes() -> int:
    """Return the memory that this process shares with no other."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    return 1024 * sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.M))


def in_a_fork(images: ImageSet) -> int:
    """Return the private memory that a forked process gains by reading every name and path."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = private_bytes()
        for i in range(len(images)):
            assert images.names[i]
            assert images.paths[i]
        os.write(writer, str(private_bytes() - before).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    return int(os.read(reader, 100))


def measure(names: Sequence[str], paths: Sequence[Path | None]) -> dict[str, float]:
    """Return bytes an image: in the process that made the list, and in a loader process after an epoch."""
    images = ImageSet(names, np.zeros(IMAGES, np.int64), ["a"], lambda i: np.empty(0, np.uint8), paths)
    return {"loader": in_a_fork(images) / IMAGES}


def main() -> None:
    """Measure both lists."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", type=Path, help="JSON lines file to append to")
    options = p.parse_args()
    found = {}
    for kind in ("arrays", "lists"):
        before = private_bytes()
        names = (f"n{i % CLASSES:08}/n{i % CLASSES:08}_{i}.JPEG" for i in range(IMAGES))
        pairs = [(name, Path("/data/imagenet/train", name)) for name in names]
        if kind == "arrays":
            held: tuple[Sequence[str], Sequence[Path | None]] = Strings(a for a, _ in pairs), Paths(b for _, b in pairs)
            own = sum(part.nbytes for part in held) + 8 * IMAGES  # type: ignore[attr-defined]  # with the labels
        else:
            held = [a for a, _ in pairs], [b for _, b in pairs]
            own = private_bytes() - before
        del pairs
        found[kind] = {"bytes_per_image": own / IMAGES, **measure(*held)}
        print(kind, {name: round(value, 1) for name, value in found[kind].items()}, flush=True)
        del held
    if options.record:
        with open(options.record, "a", encoding="utf-8") as file:
            file.write(json.dumps({**found, "images": IMAGES, "environment": environment(torch.device("cpu"))}) + "\n")


if __name__ == "__main__":
    main()
