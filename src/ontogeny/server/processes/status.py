"""What the processes that share a database do: requests, branches, and examples that wait to be learned."""

import time
from typing import NamedTuple

from ontogeny.server.processes.identity import computes_equally
from ontogeny.server.processes.membership import IS_ALIVE, ServerProcess, list_processes
from ontogeny.server.processes.ownership import MIXED, describe_change
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


class Computation(NamedTuple):
    """A kind of processor and packages, on which the bits of learned weights depend.

    Attributes:
        computed_by: Its description; see `identity.describe_computation`.
        processes: The numbers of the processes that compute with it.
        num_branches: Branches whose current weights it has computed, that no process owns, and whose log does not say
            that the bits of a process that runs follow.
    """

    computed_by: str
    processes: list[int]
    num_branches: int


def list_computations(store: Store) -> list[Computation]:
    """Returns what the processes compute with, and what computed the branches that wait for an owner.

    Args:
        store: A database that several processes share.
    """
    processes = list_processes(store)
    counts = dict.fromkeys(sorted(process.computed_by for process in processes), 0)
    parts = [describe_change("\n", present).split("\n") for present in counts]  # around what has computed the weights
    is_marked = " OR ".join(["reason = ? || computed_by || ?"] * len(parts)) or "FALSE"
    query = (
        "SELECT computed_by, count(*) FROM branches JOIN versions ON versions.branch = branches.branch "
        "AND versions.number = current_version WHERE computed_by IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM processes WHERE processes.number = owner AND {IS_ALIVE}) AND NOT EXISTS "
        "(SELECT 1 FROM decisions WHERE decisions.branch = branches.branch AND kind = ? AND version = current_version "
        f"AND ({is_marked})) GROUP BY computed_by ORDER BY 1"
    )
    for recorded, count in store.execute(query, MIXED, *(text for part in parts for text in part)):
        computed_by = next((present for present in counts if computes_equally(present, recorded)), recorded)
        counts[computed_by] = counts.get(computed_by, 0) + count
    return [
        Computation(name, [process.number for process in processes if process.computed_by == name], count)
        for name, count in counts.items()
    ]


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
