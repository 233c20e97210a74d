"""What a person sees while a study runs: rich bars and tables on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ontogeny.studies.comparison import Standing, against_best, number


class StudyEvent(NamedTuple):
    """What a running study reports."""

    kind: str  # "start", "work", "progress", "table", "end"
    text: str
    done: int = 0
    total: int = 0
    rows: tuple[Standing, ...] = ()  # of a table
    lines: tuple[tuple[str, float], ...] = ()  # published beside it
    ceiling: float = float("inf")  # that no strategy exceeds on average


OnEvent = Callable[[StudyEvent], None]


class ProgressDisplay:
    """Shows the events of a run; call it with each. Nothing is drawn where the output is not a terminal, only lines."""

    def __init__(self) -> None:
        self.started = self.began = time.perf_counter()
        self.live = sys.stdout.isatty()
        self.bars: Any = None
        self.measurements: Any = None
        self.within: Any = None

    def close(self) -> None:
        """Gives the terminal back, whatever became of the run."""
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: StudyEvent) -> None:
        getattr(self, f"_{event.kind}")(event)

    def _start(self, event: StudyEvent) -> None:
        if event.done > 1:
            self._say(f"{event.text}: going on after {event.done} of {event.total} records")
        else:
            self._say(event.text)
        if self.live:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.table import Column

            self.bars = Progress(
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=10),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                transient=True,
                expand=True,
            )
            self.measurements = self.bars.add_task("study", total=event.total, rate="")
            self.within = self.bars.add_task("", total=None, visible=False, rate="")
            self.bars.start()

    def _work(self, event: StudyEvent) -> None:
        if self.bars is not None:
            self.bars.update(self.measurements, completed=event.done, total=event.total)
            self.bars.reset(self.within, description=event.text, total=None, visible=True, rate="")
            self.began = time.perf_counter()
        elif event.text.startswith("development/"):
            self._say(event.text)

    def _progress(self, event: StudyEvent) -> None:
        if self.bars is not None:
            rate = f"{number(event.done / max(time.perf_counter() - self.began, 1e-3), 2)}/s"
            self.bars.update(self.within, completed=event.done, total=event.total, rate=rate)

    def _table(self, event: StudyEvent) -> None:
        best = dict(event.lines)
        heads = ["agent", "score", "± se", "95 % interval", "published", "steps before birth"]
        rows = []
        for row in event.rows:
            # An agent that is shown the task is in no contest.
            far = None if row.privileged else against_best(row.score, best, event.ceiling)
            beside = "" if far is None else f"{far.verdict} {far.line} {number(far.value)}"
            steps = f"{row.development_steps:,}" if row.development_steps else "none"
            score = row.score
            between = f"{number(score.low)} to {number(score.high)}"
            rows.append([row.agent, number(score.mean), number(score.se, 2), between, beside, steps])
        if self.bars is not None:
            from rich.table import Table

            table = Table(*heads, title=event.text, title_justify="left")
            for row in rows:
                table.add_row(*row)
            self.bars.console.print(table)
            return
        widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
        self._say(event.text)
        for line in [heads, *rows]:
            print(
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(),
                flush=True,
            )

    def _end(self, event: StudyEvent) -> None:
        self.close()
        self._say(f"report: {event.text}")

    def _say(self, text: str) -> None:
        if self.bars is not None:
            self.bars.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{time.perf_counter() - self.started:4.0f} s] {text}", flush=True)
