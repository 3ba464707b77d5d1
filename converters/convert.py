"""Convert any self-supervised checkpoint to detectron2, OpenMMLab, torchvision or timm, and verify the result.

python converters/convert.py CKPT --to detectron2|openmmlab|mmdet|torchvision|timm [--out FILE]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from common.cli import CommandParser, printable, run_cli
from common.surroundings import WEIGHTS
from converters.errors import VerificationError
from converters.formats import BY_NAME
from converters.options import TARGETS, add_reading_options, require_source


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = CommandParser("convert.py", __doc__, variables=WEIGHTS)
    p.add_argument(
        "checkpoint",
        help="a checkpoint file in any format that --from names, or timm:NAME, torchvision:NAME (both pre-trained; "
        "timm:NAME?pretrained=false&seed=0 is not), random:ARCH?seed=0",
    )
    p.add_argument("--to", choices=list(TARGETS), required=True, help="the framework to write for")
    p.add_argument("--out", type=str, help="the file to write; default: CKPT.TARGET.SUFFIX beside the checkpoint")
    add_reading_options(p)
    p.add_argument("--branch", type=str, help="deprecated: --weights")
    p.add_argument("--from", choices=list(BY_NAME), help="the format of the checkpoint; default: recognise it")
    p.add_argument(
        "--drop", type=str, action="append", default=[],
        help="regular expression of keys to leave out besides those that the format's rules name; may be repeated",
    )  # fmt: skip
    p.add_argument(
        "--prefix", type=str, default="",
        help="what to write before every key, for OpenMMLab's init_cfg=dict(prefix=…): backbone.",
    )  # fmt: skip
    p.add_argument(
        "--verify", choices=["auto", "yes", "no"], default="auto",
        help="build the framework's own model, load the file and compare tensors and features; "
        "auto: where the framework is installed",
    )  # fmt: skip
    p.add_argument("--trust", action="store_true", help="let the file run any Python code; only for files you made")
    p.add_argument("--force", action="store_true", help="overwrite files that exist and differ")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 for a user's mistake, 1 for a converted file that is not equal."""

    def work() -> int:
        given = parser().parse(arguments)
        require_source(given.checkpoint)
        # Here: torch takes a second, and --help does without.
        from converters.conversion import convert
        from converters.sources import ReadOptions

        if given.branch:
            print("--branch is deprecated: --weights chooses the weights", file=sys.stderr)
        weights = given.weights or given.branch
        options = ReadOptions(weights, given.arch, given["from"], tuple(given.drop), given.trust)
        try:
            done = convert(
                given.checkpoint, given.to, given.out, options,
                prefix=given.prefix, check=given.verify, force=given.force,
            )  # fmt: skip
        except VerificationError as error:
            print(printable(f"convert.py: not equal, nothing written: {error}"), file=sys.stderr)
            return 1
        print(done)
        return 0

    return run_cli("convert.py", work, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
