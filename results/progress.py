"""What a study shows: the plan before, the progress on the way, the summary at the end."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate
from tqdm import tqdm

from results.cells import Outcome, has_result, is_done
from results.plan import Cell

CHECK_MINUTES = 0.5  # of a command that finds its result there
PRIOR_MINUTES = 10.0  # how much measured time it takes to believe in another pace than the estimated one
WORDS = {"failed": "failed before", "stopped": "stopped", "not run": "to do", "submitted": "in Slurm", "done": "to do"}


def standing(cell: Cell, last: Mapping[str, Outcome]) -> str:
    """Where a cell stands: done, to check (its result is there, this study has not seen how it came), to do ..."""
    if is_done(cell, last):
        return "done"
    if has_result(cell):
        return "to check"
    return WORDS[last[cell.name].status] if cell.name in last else "to do"


def weights(cells: Sequence[Cell], last: Mapping[str, Outcome]) -> dict[str, float]:
    """Minutes that each cell which is not done may take; where no estimate is given, the mean of the others."""
    left = {cell: standing(cell, last) for cell in cells}
    known = [cell.minutes for cell in cells if cell.minutes is not None]
    usual = statistics.mean(known) if known else 1.0
    minutes = {cell: usual if cell.minutes is None else cell.minutes for cell in cells}
    return {
        cell.name: min(minutes[cell], CHECK_MINUTES) if how == "to check" else minutes[cell]
        for cell, how in left.items()
        if how != "done"
    }


def plan_text(cells: Sequence[Cell], last: Mapping[str, Outcome], jobs: int) -> str:
    """A line for each cell, and what is left in all."""
    left = weights(cells, last)
    rows = [
        [standing(cell, last), _cost(cell) if cell.name in left else "", cell.name, shlex.join(cell.command)]
        for cell in cells
    ]
    table = tabulate(rows, headers=["", "estimate", "cell", "command"], tablefmt="plain", disable_numparse=True)
    count = Counter(row[0] for row in rows)
    lines = [f"{len(cells)} cells: " + ", ".join(f"{n} {how}" for how, n in count.most_common())]
    open_cells = [cell for cell in cells if cell.name in left]
    devices = [cell for cell in open_cells if cell.gpus and cell.minutes is not None]
    if devices:
        hours = sum(left[cell.name] * cell.gpus / 60 for cell in devices)
        lines.append(f"left, estimated: {hours:,.0f} GPU-hours in {len(devices)} cells")
    others = [left[cell.name] for cell in open_cells if not cell.gpus and cell.minutes is not None]
    if others:
        lines.append(f"left, estimated: {duration(sum(others) / jobs)} in {len(others)} cells, {jobs} at a time")
    unknown = sum(cell.minutes is None for cell in open_cells)
    if unknown:
        lines.append(f"no estimate for {unknown} cells")
    return "\n".join([str(table), "", *lines])


def _cost(cell: Cell) -> str:
    if cell.minutes is None:
        return "–"
    return f"{cell.minutes * cell.gpus / 60:,.0f} GPU-h" if cell.gpus else f"{cell.minutes:g} min"


def duration(minutes: float) -> str:
    """E.g. "2 h 05 min"."""
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


class Progress:
    """A line for each cell that ends and, on a terminal, a bar; both with the time left.

    Args:
        minutes: estimate for each cell that is to run.
        jobs: cells at a time; None: as many as run.
    """

    def __init__(self, minutes: Mapping[str, float], jobs: int | None) -> None:
        self._left, self._jobs = dict(minutes), jobs
        self._total, self._minutes = len(self._left), sum(self._left.values())
        self._estimated = self._measured = 0.0
        self._since: dict[str, float] = {}
        self._shown = 0.0
        self._bar = tqdm(
            total=self._minutes, disable=None, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% {bar:20} {elapsed}{postfix}",
        )  # fmt: skip

    def ended(self, outcome: Outcome) -> None:
        """Takes note of a cell's end."""
        if outcome.cell not in self._left:  # done before
            return
        minutes = self._left.pop(outcome.cell)
        if outcome.status == "done":
            self._estimated += minutes
            self._measured += outcome.seconds / 60
        reason = f": {outcome.reason}" * bool(outcome.reason) + f"; log: {outcome.log}" * bool(outcome.log)
        reason = "" if outcome.status == "done" else reason
        place = f"[{self._total - len(self._left)}/{self._total}]"
        took = f" in {outcome.seconds / 60:.1f} min" if outcome.seconds else ""
        tqdm.write(f"{place} {outcome.status}{took}: {outcome.cell}{reason}; {self.eta}")
        sys.stdout.flush()

    def show(self, running: Mapping[str, str]) -> None:
        """Takes note of what runs."""
        now = time.monotonic()
        self._since = {cell: self._since.get(cell, now) for cell in running}
        if now - self._shown > 1:
            self._shown = now
            self._bar.n = self._minutes - self._minutes_left()
            self._bar.set_postfix_str(f"{self.eta}; {', '.join(running.values())}")

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.leave = False
        self._bar.close()

    @property
    def eta(self) -> str:
        """The time left, at the pace seen so far."""
        pace = (self._measured + PRIOR_MINUTES) / (self._estimated + PRIOR_MINUTES)
        return f"about {duration(pace * self._minutes_left() / (self._jobs or max(len(self._since), 1)))} left"

    def _minutes_left(self) -> float:
        now = time.monotonic()
        gone = {cell: (now - since) / 60 for cell, since in self._since.items()}
        return sum(max(minutes - gone.get(cell, 0.0), 0.05 * minutes) for cell, minutes in self._left.items())


def summary(cells: Iterable[Cell], outcomes: Mapping[str, Outcome]) -> str:
    """Checkpoint by task: how many cells are done of how many; below it what failed, and where to read why."""
    table: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        outcome = outcomes.get(cell.name)
        checkpoint, task = cell.row
        table[checkpoint][task].append(outcome.status if outcome else "open")
    columns = list(dict.fromkeys(task for row in table.values() for task in row))
    rows = [[name, *(_tally(row.get(task, [])) for task in columns)] for name, row in table.items()]
    text = str(tabulate(rows, headers=["checkpoint", *columns], tablefmt="simple", disable_numparse=True))
    bad = [outcome for outcome in outcomes.values() if outcome.status not in ("done", "submitted")]
    lines = [f"{o.status}: {o.cell}: {o.reason}" + (f"\n    log: {o.log}" if o.log else "") for o in bad]
    return "\n".join([text, "", *lines]) if lines else text


def _tally(statuses: Sequence[str]) -> str:
    if not statuses:
        return ""
    count = Counter(statuses)
    if len(count) == 1 and len(statuses) == 1:
        return statuses[0]
    return ", ".join(f"{n} {status}" for status, n in count.items())
