"""Kill pre-trainings at random moments, resume each to its end, and compare its weights with an undisturbed run's.

    python tests/benchmarks/kills.py [--count 100] [--seed 0] [--out results/benchmarks/kills.jsonl]

Real processes on the CPU: images in files and in memory, 0 to 2 loader processes, alone and two ranks under torchrun;
SIGKILL, SIGTERM and SIGINT, to one process or to all, in the start-up, in a step, while saving. After each kill it
checks the exit status, that a signal which can be caught has saved the state, and that no process is left. A run is
started again until it ends; then every tensor of its last checkpoint must equal the undisturbed one's, bit for bit.

The output has one line a run; started again with the same count and seed, it continues. At the end it prints
"100 of 100", the seed and the duration; the exit status is 1 where a kill failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import psutil
import torch

from tests.pretrain.small_run import ROOT, options, write_images

STEPS = 24
LIMIT = 600  # seconds for one start on a machine that does other things, too
Encoding = tuple[str, int]  # of a run: where the images are, and the number of ranks


@dataclass(frozen=True)
class Kill:
    """A signal at a moment of one start of a run.

    Attributes:
        signal: its name.
        group: to all processes, else to one: the run, the agent of torchrun, or for SIGKILL one of its ranks.
        workers: loader processes of this start.
        progress: fraction of the steps left that are done at that moment; None: in the start-up.
        delay: seconds after that.
    """

    signal: str
    group: bool
    workers: int
    progress: float | None
    delay: float


def plan(count: int, seed: int) -> list[tuple[Encoding, list[Kill]]]:
    """Return the runs with their kills, `count` kills in all."""
    draw = random.Random(seed)
    runs: list[tuple[Encoding, list[Kill]]] = []
    while count:
        encoding = draw.choice(["files", "memory"]), draw.choices([1, 2], [5, 1])[0]
        kills = [
            Kill(
                draw.choice(["SIGKILL", "SIGTERM", "SIGINT"]), draw.random() < 0.5, draw.randrange(3),
                None if draw.random() < 0.15 else draw.random(), draw.random() * 0.2,
            )
            for _ in range(min(count, draw.randint(1, 4)))
        ]  # fmt: skip
        runs.append((encoding, kills))
        count -= len(kills)
    return runs


class Runs:
    """Starts pre-trainings of one encoding below a folder."""

    def __init__(self, encoding: Encoding, images: Path, folder: Path) -> None:
        self.where, self.ranks = encoding
        self.images, self.folder = images, folder

    def start(self, name: str, workers: int) -> subprocess.Popen[bytes]:
        """Start a run, or continue it."""
        data: dict[str, Any] = {"monitor__knn_every": 1, "optim__epochs": STEPS / 4}  # epochs of 4 batches
        if self.where == "memory":  # 10,000 images: 625 batches
            data = {"data__train": "fashion:test", "monitor__holdout": 0, "optim__epochs": STEPS / 625}
        given = options(
            self.images, self.folder, name=name, data__workers=workers, checkpoint__last_every=3,
            data__root=ROOT / "data", **data,
        )  # fmt: skip
        torchrun = ["pretrain.launch", "--standalone", "--nproc-per-node", str(self.ranks), "-m"]
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", *torchrun * (self.ranks > 1), "pretrain.train", *given], cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def steps(self, name: str) -> int:
        """Return the last step that metrics.jsonl holds."""
        path = self.folder / name / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)

    def finish(self, name: str) -> dict[str, torch.Tensor]:
        """Start a run until it ends, and return its tensors.

        Raises:
            AssertionError: it does not end well.
        """
        process = self.start(name, workers=0)
        assert process.wait(LIMIT) == 0, f"exit status {process.returncode}"
        saved: dict[str, torch.Tensor] = torch.load(self.folder / name / "last.pth", weights_only=True)["state_dict"]
        return saved

    def kill(self, name: str, kill: Kill) -> bool:
        """Start a run and kill it; return False where it had ended before.

        Raises:
            AssertionError: the exit status is wrong, a state is not saved, or a process is left.
        """
        done = self.steps(name)
        process = self.start(name, kill.workers)
        self._wait(process, name, done, kill)
        seen = self.steps(name)
        landed = self._send(process.pid, kill)
        status, number = process.wait(LIMIT), signal.Signals[kill.signal]
        _, left = psutil.wait_procs(self._processes(), timeout=30)
        assert not left, f"still there: {left}"
        if not landed or status == 0:
            return landed
        in_training = seen > done
        # torchrun passes the signal on, so that its ranks get two, and a second SIGINT ends a run at once.
        twice = kill.group and kill.signal == "SIGINT" and self.ranks > 1
        caught = kill.signal != "SIGKILL" and in_training and not twice
        allowed = {128 + number} if caught else {128 + number, -number, 1}  # 1: while Python imports
        assert status in allowed, f"exit status {status}"
        if caught:
            step = torch.load(self.folder / name / "last.pth", weights_only=True)["step"]
            assert step >= seen, f"saved at step {step}, after step {seen} was seen"
        return True

    def _wait(self, process: subprocess.Popen[bytes], name: str, done: int, kill: Kill) -> None:
        """Wait for the moment of a kill, or until the run ends."""
        if kill.progress is None:
            time.sleep(kill.delay * 20)
            return
        wanted, deadline = done + max(1, round(kill.progress * (STEPS - done))), time.monotonic() + LIMIT
        while process.poll() is None and not done < wanted <= self.steps(name) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(kill.delay)

    def _send(self, pid: int, kill: Kill) -> bool:
        """Send the signal; return whether anything got it."""
        targets = self._processes()
        if not kill.group and kill.signal == "SIGKILL" and self.ranks > 1:
            # Without its agent a rank would go on to the end, so this kills a rank.
            targets = [target for target in targets if "pretrain.launch" not in " ".join(_words(target))][:1]
        elif not kill.group:
            targets = [target for target in targets if target.pid == pid]
        landed = [target for target in targets if _signal(target, signal.Signals[kill.signal])]
        while kill.group and kill.signal == "SIGKILL" and (new := self._processes()):  # started meanwhile
            for target in new:
                _signal(target, signal.SIGKILL)
        return bool(landed)

    def _processes(self) -> list[psutil.Process]:
        """Return all processes of the runs in this folder."""
        ours = [process for process in psutil.process_iter() if str(self.folder) in _words(process)]
        return [process for process in ours if process.pid != os.getpid() and _alive(process)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def disturb(runs: Runs, name: str, kills: list[Kill], expected: dict[str, torch.Tensor]) -> None:
    """Kill a run several times, and finish it; one that is nearly at its end is finished and begun again.

    Raises:
        AssertionError: weights differ from `expected`, or a kill went wrong.
    """

    def compare() -> None:
        ended = runs.finish(name)
        differ = [key for key in expected | ended if not torch.equal(expected[key], ended[key])]
        assert not differ, f"{len(differ)} tensors differ, e.g. {differ[0]}"

    for number, kill in enumerate(kills):
        try:
            if runs.steps(name) > STEPS - 6:
                compare()
                shutil.rmtree(runs.folder / name)
            while not runs.kill(name, kill):
                shutil.rmtree(runs.folder / name)
        except AssertionError as error:
            raise AssertionError(f"{error}; kill {number} of {[asdict(kill) for kill in kills]}") from error
    compare()


def measure(count: int, seed: int, out: Path) -> bool:
    """Do the runs that `out` lacks, adding a line for each; print the outcome and return whether no kill failed."""
    header = {"count": count, "seed": seed, "cpu": _cpu(), "torch": torch.__version__}
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not rows or any(rows[0].get(key) != header[key] for key in ("count", "seed")):
        rows = [header]
        _write(out, rows)
    references: dict[Encoding, dict[str, torch.Tensor]] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        images = write_images(Path(made) / "images")
        for index, (encoding, kills) in list(enumerate(plan(count, seed)))[len(rows) - 1 :]:
            began, runs, name = time.time(), Runs(encoding, images, Path(made)), f"run{index}"
            row = {"images": encoding[0], "ranks": encoding[1], "kills": [asdict(kill) for kill in kills]}
            try:
                if encoding not in references:
                    references[encoding] = runs.finish(f"reference-{encoding[0]}-{encoding[1]}")
                disturb(runs, name, kills, references[encoding])
                outcome = "bit-identical"
            except (AssertionError, subprocess.TimeoutExpired) as error:
                outcome = str(error)
                print((Path(made) / f"{name}.log").read_text(errors="replace")[-3000:], file=sys.stderr)
            rows.append({**row, "outcome": outcome, "seconds": round(time.time() - began, 1)})
            _write(out, rows)
            shutil.rmtree(Path(made) / name, ignore_errors=True)
            print(
                f"{index + 1}: images in {encoding[0]}, ranks: {encoding[1]}, kills: {len(kills)}: {outcome}",
                flush=True,
            )
    good = sum(len(row["kills"]) for row in rows[1:] if row["outcome"] == "bit-identical")
    seconds = sum(row["seconds"] for row in rows[1:])
    print(f"{good} of {count} kills ended in bit-identical weights; seed {seed}, {seconds:.0f} s")
    return good == count


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _cpu() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of signals, moments and runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks/kills.jsonl", help="one line a run")
    given = parser.parse_args(arguments)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; the runs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return 0 if measure(given.count, given.seed, given.out) else 1


if __name__ == "__main__":
    sys.exit(main())
