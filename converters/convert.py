"""Convert any self-supervised checkpoint for detectron2, OpenMMLab, torchvision or timm, and prove it equal.

python converters/convert.py CKPT --to detectron2|openmmlab|torchvision|timm [--out FILE]
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder, and none of its files as top modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jsonargparse
from tabulate import tabulate

from converters import named, sources
from converters.backbone import VerificationError, some
from converters.files import staged
from converters.formats import BY_NAME
from converters.targets import TARGETS, Target
from converters.verify import Check, installed, verify


@dataclass(frozen=True)
class Conversion:
    """What was read, where it was written, and how it was proved, or why not; printing it tells the user."""

    reading: sources.Reading
    target: Target
    path: Path
    written: int
    checks: tuple[Check, ...]
    unproved: str

    def __str__(self) -> str:
        backbone, dropped = self.reading.backbone, self.reading.dropped
        tensors, origin = backbone.tensors, BY_NAME.get(backbone.source.format)
        left_out = [name for name in tensors if name.endswith("num_batches_tracked")]
        left_out = left_out if self.written < len(tensors) else []
        convs = sum(tensor.ndim == 4 for tensor in tensors.values())
        rows = [["read", len(tensors), f"{backbone.arch}: {convs} convolutions and their batch norms"]]
        rows += [[f"dropped, {rule}", len(keys), some(keys, 2)] for rule, keys in dropped.items()]
        rows += [["not written, step counters", len(left_out), some(left_out, 2)]] if left_out else []
        rows += [["written", self.written, str(self.path)]]
        gone = sum(map(len, dropped.values()))
        lines = [
            f"{backbone.source.path}: {backbone.source.format} layout"
            + (f" ({origin.origin})" if origin else "")
            + f", {self.reading.branch} encoder, {backbone.arch}, sha256 {backbone.source.sha256[:12]}",
            tabulate(rows, headers=["", "tensors", "which"]),
            f"{self.reading.total} keys found, {self.reading.total - gone} read, {gone} dropped on purpose, "
            f"{self.written} tensors written to {self.path}",
            *(f"note: {note}" for note in self.reading.notes),
            *(f"verified: {check}" for check in self.checks),
        ]
        if self.unproved:
            lines.append(f"not verified: {self.unproved}")
        return "\n".join([*lines, f"use: {self.target.usage(backbone.arch, self.path)}"])


def convert(
    checkpoint: str,
    to: str,
    out: str | None = None,
    branch: str | None = None,
    source: str | None = None,
    drop: Iterable[str] = (),
    prefix: str = "",
    check: str = "auto",
    trust: bool = False,
    force: bool = False,
) -> Conversion:
    """Read `checkpoint`, write it for the framework `to`, and compare the framework's own model with it.

    Args:
        checkpoint: a file, or timm:NAME, torchvision:NAME, random:ARCH.
        to: a name in targets.TARGETS.
        out: the file to write; CKPT.TARGET.SUFFIX beside the checkpoint by default.
        branch: which encoder.
        source: the layout, when it is not to be recognised.
        drop: patterns of more keys to leave out.
        prefix: written before every key, OpenMMLab only.
        check: "yes", "no", or "auto": where the framework is installed.
        trust: let the checkpoint run any code while it is read.
        force: write over other files.

    Raises:
        ValueError: a user's mistake; nothing is written.
        VerificationError: the framework's model is not equal; nothing is written.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to} is unknown; it takes {', '.join(TARGETS)}")
    target = TARGETS[to]
    path = Path(out) if out else _default_out(checkpoint, target)
    if path.suffix not in target.suffixes:
        raise ValueError(f"--out {path}: a {to} file ends in {' or '.join(target.suffixes)}")
    if path.exists() and Path(checkpoint).exists() and path.samefile(checkpoint):
        raise ValueError(f"--out {path} is the checkpoint itself; name another file")
    if prefix and to != "openmmlab":
        raise ValueError(f"--prefix {prefix}: {to} wants bare keys; only OpenMMLab reads them with a prefix")
    unproved = "--verify no" if check == "no" else ""
    if not unproved and not installed(to):
        unproved = f"{target.package} is not installed; bash setup.sh installs it"
        if check == "yes":
            raise ValueError(f"--verify yes: {unproved}")
    reading = sources.read(checkpoint, branch, source, trust, drop)
    with staged(path.parent, force) as folder:
        part = folder / path.name
        written = target.save(reading.backbone, part, prefix)
        checks = () if unproved else tuple(verify(reading.backbone, to, part))
    return Conversion(reading, target, path, written, checks, unproved)


def _default_out(checkpoint: str, target: Target) -> Path:
    path = Path(re.sub(r"[^\w.-]+", "-", checkpoint) if named.is_named(checkpoint) else checkpoint)
    stem = re.sub(r"(\.(pth|pt|pkl|tar|ckpt|bin|safetensors))+$", "", path.name)
    return path.parent / f"{stem}.{target.name}{target.suffixes[0]}"


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog="convert.py", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "checkpoint",
        help="a checkpoint file in any layout that --from names, or timm:NAME, torchvision:NAME (both pre-trained; "
        "timm:NAME?pretrained=false&seed=0 is not), random:ARCH?seed=0",
    )
    parser.add_argument("--to", choices=list(TARGETS), required=True, help="the framework to write for")
    parser.add_argument(
        "--out", type=str, help="the file to write; CKPT.TARGET.SUFFIX beside the checkpoint if not given"
    )
    parser.add_argument(
        "--branch",
        type=str,
        help="which encoder: query or key, online or momentum, student or teacher; "
        "by default the one that its authors transfer",
    )
    parser.add_argument(
        "--from", choices=list(BY_NAME), help="the layout of the checkpoint; recognised by its keys if not given"
    )
    parser.add_argument(
        "--drop", type=str, action="append", default=[],
        help="regular expression of keys to leave out besides those that the layout's rules name; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--prefix", type=str, default="",
        help="what to write before every key, for OpenMMLab's init_cfg=dict(prefix=…): backbone.",
    )  # fmt: skip
    parser.add_argument(
        "--verify", choices=["auto", "yes", "no"], default="auto",
        help="build the framework's own model, load the file and compare tensors and features; "
        "auto: where the framework is installed",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="let the checkpoint run any Python code; only for files you made"
    )
    parser.add_argument("--force", action="store_true", help="write over files that are there and differ")
    return parser


def main(args: list[str] | None = None) -> int:
    """Run the command; return 0, 2 for a user's mistake, 1 for a file that could not be proved equal."""
    try:
        options = _parser().parse_args(args)
        done = convert(
            options.checkpoint, options.to, options.out, options.branch, options["from"], options.drop,
            options.prefix, options.verify, options.trust, options.force,
        )  # fmt: skip
    except (ValueError, OSError, jsonargparse.ArgumentError) as error:
        print(f"convert.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except VerificationError as error:
        print(f"convert.py: not equal, nothing written: {error}", file=sys.stderr)
        return 1
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
