"""What the processes that share a database do: requests, branches, and examples that wait to be learned."""

import time
from typing import NamedTuple

from ontogeny.server.processes.membership import ServerProcess, list_processes
from ontogeny.server.schema import UNDECIDED
from ontogeny.server.store import Store

MAX_BRANCHES = 20  # that are listed: those that have waited longest


class WaitingBranch(NamedTuple):
    """A branch with examples that have not been decided on."""

    branch: str
    owner: int | None  # the process that learns them; None if no process owns the branch
    num_pending: int
    oldest_created_at: float  # seconds since 1970


class ProcessStatus(NamedTuple):
    """A process, or what no process owns.

    Attributes:
        process: None for the branches without an owner that has a lease.
        num_branches: Branches that it owns.
        num_pending: Examples of these branches that have not been decided on.
        lag: Seconds since the oldest of them arrived; 0 without any.
    """

    process: ServerProcess | None
    num_branches: int
    num_pending: int
    lag: float


def read_status(store: Store) -> tuple[list[ProcessStatus], list[WaitingBranch]]:
    """Reads the state of all processes, and the branches that have waited longest.

    Args:
        store: The database; SQLite has no list of processes.

    Returns:
        One status per process, then one for the branches that no process owns; and the branches.
    """
    processes = list_processes(store) if store.database.is_shared else []
    numbers = {process.number for process in processes}
    num_branches: dict[int | None, int] = {}
    for owner, count in store.execute("SELECT owner, count(*) FROM branches GROUP BY owner"):
        owner = owner if owner in numbers else None
        num_branches[owner] = num_branches.get(owner, 0) + count
    query = (
        "SELECT branch, owner, count(*), min(created_at) FROM branches JOIN examples USING (branch) "
        f"WHERE newest_example > last_decided AND number > last_decided AND {UNDECIDED} "
        "GROUP BY branch, owner ORDER BY min(created_at), branch"
    )
    waiting = [
        WaitingBranch(branch, owner if owner in numbers else None, count, oldest)
        for branch, owner, count, oldest in store.execute(query)
    ]
    current_time = time.time()

    def describe(process: ServerProcess | None) -> ProcessStatus:
        """The status of a process."""
        number = None if process is None else process.number
        branches = [branch for branch in waiting if branch.owner == number]
        lag = max((current_time - branch.oldest_created_at for branch in branches), default=0.0)
        return ProcessStatus(
            process, num_branches.get(number, 0), sum(branch.num_pending for branch in branches), max(lag, 0.0)
        )

    return [*map(describe, processes), describe(None)], waiting[:MAX_BRANCHES]
