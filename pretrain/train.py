"""Entry of pre-training: `bash pretrain/run.sh [--recipe NAME] [--option value ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from common.cli import run_cli
from common.surroundings import leave_process_group
from pretrain.config import Config, PlanOptions, parse_command


def main(arguments: list[str] | None = None) -> int:
    """Run pre-training.

    Returns:
        0 when done; 2 for a user's mistake; 3 when the loss is not finite; 128 + signal number (143, 130) when stopped
        by SIGTERM or SIGINT, with the state saved.
    """
    try:
        return run_cli("pretrain", lambda: command(*parse_command(arguments)), resumable=False)
    finally:
        leave_process_group()


def command(config: Config, options: PlanOptions) -> int:
    """Train; or with --check-data check the images, or with --dry-run print what it takes; return the exit status."""
    if options.check_data + options.dry_run + config.skip_check > 1:
        raise ValueError("--check-data, --dry-run and --skip-check: give one of them")
    if options.dry_run:
        from pretrain.plan import report

        print(report(config, options))
        return 0
    from pretrain import run  # here: torch takes a second, and --help does without

    return run.check_data(config) if options.check_data else run.pretrain(config)


if __name__ == "__main__":
    sys.exit(main())
