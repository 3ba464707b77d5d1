"""Plan every recipe of pre-training on fake GPUs, and every task: the record of two tables in docs/paper_scale.md.

    python tests/benchmarks/bench_plans.py [--record results/benchmarks/plans.json]

It takes some minutes and measures nothing but the views that a core of this machine makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.cli import config_names
from common.files import write_text
from common.run_folder import environment
from pretrain.config import RECIPES, parse_command
from pretrain.plan import make_plan, views_per_second
from transfer.tasks import DETECTION, SEGMENTATION

SETTINGS = (("1", "a100"), ("8", "a100"), ("8", "h100"))
OWN_IMAGES = "10000"  # in the row of the recipe for own images


def plan_task(program: str, task: str) -> dict[str, Any]:
    """Return what --dry-run of a command says that a task takes."""
    command = [sys.executable, f"transfer/{program}.py", "--ckpt", "random", "--task", task, "--dry-run"]
    if program == "detect" and not task.startswith("fashion"):
        command += ["--device", "cuda", "--num-gpus", "8"]
    printed = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    return {"task": task, **json.loads(printed.splitlines()[-1])["takes"]}


def main() -> None:
    """Plan each recipe on each kind of machine and write the record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", type=Path, help="JSON file to write")
    options = p.parse_args()
    rows = []
    for recipe in config_names(RECIPES):
        for gpus, gpu in SETTINGS:
            images = ["--images", OWN_IMAGES] if recipe == "my_folder" else []
            words = ["--recipe", recipe, "--dry-run", "--gpus", gpus, "--gpu", gpu, *images]
            try:
                plan = make_plan(*parse_command(words))
            except ValueError as error:  # does not divide: part of the answer
                rows.append({"recipe": recipe, "gpus": int(gpus), "gpu": gpu, "refused": str(error)})
            else:
                rows.append({"recipe": recipe, **asdict(plan), "images_per_second": plan.images_per_second,
                             "hours": plan.hours})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    views = views_per_second(parse_command(["--recipe", "imagenet_800ep"])[0])
    tasks = [plan_task("detect", task) for task in DETECTION.names()]
    tasks += [plan_task("segment", task) for task in SEGMENTATION.names()]
    record = {"rows": rows, "tasks": tasks, "views_per_second": views, "environment": environment(torch.device("cpu"))}
    if options.record:
        write_text(options.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
