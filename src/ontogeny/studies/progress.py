"""Progress of a running study: progress bars and tables on a terminal, plain lines anywhere else."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ontogeny.report.formatting import format_number
from ontogeny.studies.comparison import AgentResult, compare_with_best_published
from ontogeny.studies.pairwise import (
    PairwiseDifference,
    describe_environment,
    describe_unclaimed,
    format_difference,
    main_pairs,
)

PAIR_HEADS = ("first agent", "second agent", "difference (95 % interval)", "higher")
# How the ids of measurements begin that take long.
LONG_WORK = ("development/", "planning/", "curve/", "picture/", "attribution/")
DONE_INTERVAL = 10.0  # seconds at least between lines about what is left, where the output is no terminal
HEADS = ("agent", "score", "± se", "95 % interval", "published", "training steps")


class StudyEvent(NamedTuple):
    """What a running study reports."""

    kind: str  # "start", "work", "progress", "done", "failure", "table" or "end"
    text: str
    num_done: int = 0
    num_total: int = 0
    results: tuple[AgentResult, ...] = ()  # of a table
    pairs: tuple[PairwiseDifference, ...] = ()
    published_scores: tuple[tuple[str, float], ...] = ()
    upper_bound: float = float("inf")
    num_failed: int = 0  # of a measurement that is done
    seconds_left: float | None = None


OnEvent = Callable[[StudyEvent], None]


class ProgressDisplay:
    """Shows the events of a study; call it with each. Where the output is not a terminal it prints plain lines."""

    def __init__(self) -> None:
        self.start_time = self.work_start_time = time.perf_counter()
        self.done_time = -DONE_INTERVAL  # of the last line about what is left
        self.console = Console()
        self.bars = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=self.console,
            transient=True,
            expand=True,
        )
        self.is_terminal = sys.stdout.isatty()
        self.study_bar = self.bars.add_task("study", total=None, rate="")
        self.work_bar = self.bars.add_task("", total=None, visible=False, rate="")

    def close(self) -> None:
        """Restore the terminal."""
        if self.is_terminal:
            self.bars.stop()

    def __call__(self, event: StudyEvent) -> None:
        """Show one event."""
        getattr(self, f"_show_{event.kind}")(event)

    def _show_start(self, event: StudyEvent) -> None:
        """Prints the title of the study and how many records it already has."""
        resumes = f": resuming after {event.num_done} of {event.num_total} records" if event.num_done else ""
        self._print(event.text + resumes)
        if self.is_terminal:
            self.bars.update(self.study_bar, total=event.num_total)
            self.bars.start()

    def _show_work(self, event: StudyEvent) -> None:
        """Announces the next measurement; without a terminal only what takes long."""
        if self.is_terminal:
            self.bars.update(self.study_bar, completed=event.num_done, total=event.num_total)
            self.bars.reset(self.work_bar, description=event.text, total=None, visible=True, rate="")
            self.work_start_time = time.perf_counter()
        elif event.text.startswith(LONG_WORK):
            self._print(event.text)

    def _show_progress(self, event: StudyEvent) -> None:
        """Updates the bar of the present measurement, with its rate per second."""
        if self.is_terminal:
            seconds = max(time.perf_counter() - self.work_start_time, 1e-3)
            rate = f"{format_number(event.num_done / seconds, 2)}/s"
            self.bars.update(self.work_bar, completed=event.num_done, total=event.num_total, rate=rate)

    def _show_done(self, event: StudyEvent) -> None:
        """Prints what is left and how long it will take; without a terminal only now and then."""
        if self.is_terminal:
            remaining = "" if event.seconds_left is None else f", {format_duration(event.seconds_left)} left"
            failed = f", {event.num_failed} failed" if event.num_failed else ""
            self.bars.update(
                self.study_bar, completed=event.num_done, total=event.num_total, description=f"study{failed}{remaining}"
            )
        elif time.perf_counter() - self.done_time >= DONE_INTERVAL:
            self.done_time = time.perf_counter()
            self._print(describe_remaining(event))

    def _show_failure(self, event: StudyEvent) -> None:
        """Prints why a measurement failed."""
        self._print(f"failed: {event.text}")

    def _show_table(self, event: StudyEvent) -> None:
        """Prints the results of an environment and the differences between its agents, as tables and a sentence."""
        self._print_table(event.text, HEADS, [_table_row(result, event) for result in event.results])
        if event.pairs:
            visible = main_pairs(event.pairs)
            title = f"{event.text}, first agent minus second, paired by task"
            title += f" ({len(visible)} of {len(event.pairs)} pairs)" if len(visible) < len(event.pairs) else ""
            self._print_table(title, PAIR_HEADS, [_pair_row(pair) for pair in visible])
            self._print(describe_environment(event.pairs))

    def _print_table(self, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table with a title."""
        if self.is_terminal:
            table = Table(*heads, title=title, title_justify="left")
            for row in rows:
                table.add_row(*row)
            self.console.print(table)
            return
        widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
        self._print(title)
        for row in [heads, *rows]:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  " + "  ".join(cells).rstrip(), flush=True)

    def _show_end(self, event: StudyEvent) -> None:
        """Prints where the page was written."""
        self.close()
        self._print(f"report: {event.text}")

    def _print(self, text: str) -> None:
        """Prints a line, without a terminal with the seconds since the start."""
        if self.is_terminal:
            self.console.print(text, highlight=False, markup=False)
        else:
            print(f"[{time.perf_counter() - self.start_time:4.0f} s] {text}", flush=True)


def show_progress(on_event: OnEvent | None) -> contextlib.AbstractContextManager[OnEvent]:
    """The context in which a study reports its events: to `on_event`, or by default to a display."""
    return contextlib.closing(ProgressDisplay()) if on_event is None else contextlib.nullcontext(on_event)


def describe_remaining(event: StudyEvent) -> str:
    """The sentence about what is done and what is left of a study."""
    failed = f", {event.num_failed:,} failed or missing" if event.num_failed else ""
    num_left = event.num_total - event.num_done - event.num_failed
    duration = "" if event.seconds_left is None or not num_left else f", {format_duration(event.seconds_left)}"
    return f"{event.num_done:,} of {event.num_total:,} measurements done{failed}, {num_left:,} left{duration}"


def format_duration(seconds: float) -> str:
    """Format a duration that was estimated: `about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {max(1.0, seconds):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def progress_callback(notify: OnEvent, name: str) -> Callable[..., None]:
    """A callback for the units done and the units in all of one measurement; it ignores further arguments."""
    return lambda num_done, num_total, *_: notify(StudyEvent("progress", name, num_done, num_total))


def _table_row(result: AgentResult, event: StudyEvent) -> Sequence[str]:
    """The cells of one agent, in the order of `HEADS`."""
    score = result.score
    best = None  # an agent to which the task is revealed is not compared with published scores
    if not result.privileged:
        best = compare_with_best_published(score, dict(event.published_scores), event.upper_bound)
    verdict = "" if best is None else "not surely different from" if best.verdict == "level" else best.verdict
    return (
        result.agent,
        format_number(score.mean),
        format_number(score.standard_error, 2),
        f"{format_number(score.low)} to {format_number(score.high)}",
        f"{verdict} {best.baseline} {format_number(best.published_score)}" if best else "",
        f"{result.num_training_env_steps:,}" if result.num_training_env_steps else "none",
    )


def _pair_row(pair: PairwiseDifference) -> Sequence[str]:
    """The cells of one pair of agents, in the order of `PAIR_HEADS`."""
    higher = pair.first.agent if pair.is_claimed else describe_unclaimed(pair.difference)
    return pair.first.agent, pair.second.agent, format_difference(pair.difference), higher
