"""Branches that change their owner while the former owner still answers.

The owner of a branch offers it to another process that computes bitwise equal weights, or, when it ends and there is
none, to one that may own any branch. That process loads the weights first and then becomes the owner in one statement,
so that no request waits while weights are read. A process that is told to stop offers the branches in its memory. A
process also offers a branch if all requests for it are passed on by the same other process: a load balancer that routes
by key sends them there, for example after a process was replaced.

An offer names the fencing number of the branch and has no effect once the owner has changed. It is a hint: a branch
whose offer is lost, or is not accepted, changes its owner as if there had been none.
"""

import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ontogeny.errors import StorageUnavailable
from ontogeny.server.background import BackgroundThread
from ontogeny.server.learning import journal
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes.membership import IS_ALIVE, Membership
from ontogeny.server.store import Store

NUM_FORWARDED = 16  # requests in a row, passed on by the same process, after which it is offered the branch
MIN_INTERVAL = 10.0  # seconds between two such offers of a branch, and after its owner has accepted it
MAX_COUNTED = 10_000  # branches whose requests are counted: those that were used most recently
POLL_INTERVAL = 0.01  # seconds between two looks at whether offers were accepted
log = logging.getLogger(__name__)


class BranchOrigin(NamedTuple):
    """Where the last requests for a branch came from.

    Attributes:
        process: The number of the process that passed them on; None if clients sent them to this process.
        num_requests: How many there were without a request from elsewhere in between.
        offered_at: When this process last offered or accepted the branch, as a value of `time.monotonic`.
    """

    process: int | None
    num_requests: int
    offered_at: float = float("-inf")


class BranchTransfers:
    """The branches that this process offers to others, and those that others offer to it.

    Args:
        store: The database that the processes share.
        membership: This process.
        save: Writes a snapshot of the current version of a branch, if it is in memory.
        load: Brings the current version of a branch into memory.

    Attributes:
        export_prompts: Describes the recent prompts for a branch, so that its next owner does not learn them again.
        import_prompts: Remembers the prompts that the former owner has described.
    """

    def __init__(
        self, store: Store, membership: Membership, save: Callable[[str], None], load: Callable[[str], object]
    ) -> None:
        self._store, self._membership = store, membership
        self._save, self._load = save, load
        self.export_prompts: Callable[[str], str] = lambda branch: "[]"
        self.import_prompts: Callable[[str, str], None] = lambda branch, description: None
        self._lock = threading.Lock()  # of the two below
        self._origins: OrderedDict[str, BranchOrigin] = OrderedDict()
        self._to_offer: dict[str, int] = {}  # branch and process
        self._thread = BackgroundThread("transfers", self._transfer, delay=None)

    def start(self) -> None:
        """Begins to accept and to make offers."""
        self._membership.on_offered = self._thread.wake
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._thread.stop()

    def count_request(self, branch: str, process: int | None) -> None:
        """Counts a request that this process has answered as the owner of a branch.

        Args:
            branch: Its name.
            process: The number of the process that passed the request on; None if a client sent it.
        """
        with self._lock:
            last = self._origins.pop(branch, BranchOrigin(process, 0))
            count = last.num_requests + 1 if last.process == process else 1
            origin = BranchOrigin(process, count, last.offered_at)
            is_due = time.monotonic() - last.offered_at > MIN_INTERVAL
            if process is not None and count >= NUM_FORWARDED and is_due and not self._membership.is_leaving:
                origin = BranchOrigin(process, 0, time.monotonic())
                self._to_offer[branch] = process
                self._thread.wake()
            self._origins[branch] = origin
            while len(self._origins) > MAX_COUNTED:
                self._origins.popitem(last=False)

    def hand_over(self, branches: Sequence[str], max_seconds: float) -> None:
        """Offers branches to the other processes, and waits until these have accepted all, or for a while.

        Args:
            branches: Their names; snapshots of their current versions exist.
            max_seconds: After which the rest stays with this process.
        """
        deadline = time.monotonic() + max_seconds
        self._thread.interrupt()
        numbers = [process.number for process in self._membership.find_successors()]
        if not numbers:
            return
        next_number = itertools.cycle(numbers)
        with self._lock:
            origins = {branch: self._origins[branch].process for branch in branches if branch in self._origins}
        for branch in branches:
            process = origins.get(branch)
            self._offer(branch, process if process in numbers else next(next_number))
        query = (
            "SELECT count(*) FROM offered_branches JOIN branches USING (branch, fence) "
            f"JOIN processes ON number = process WHERE owner = ? AND {IS_ALIVE} AND NOT is_leaving"
        )
        while time.monotonic() < deadline and self._store.select_value(query, self._membership.last_number):
            time.sleep(POLL_INTERVAL)

    def _transfer(self) -> None:
        """Accepts and makes the offers that wait."""
        with self._lock:
            to_offer, self._to_offer = self._to_offer, {}
        if to_offer:
            numbers = {process.number for process in self._membership.find_equal_processes()}
            for branch, process in to_offer.items():
                if process in numbers:
                    self._save(branch)
                    self._offer(branch, process)
        number = self._membership.number
        if number is not None and not self._membership.is_leaving:
            query = "SELECT branch, prompts FROM offered_branches WHERE process = ?"
            for branch, prompts in self._store.execute(query, number):
                self._accept(branch, number, prompts)

    def _offer(self, branch: str, process: int | None) -> None:
        """Offers a branch of this process to another one, unless that has ended or is about to."""
        self._store.execute(
            "INSERT INTO offered_branches SELECT branch, fence, ?, ? FROM branches WHERE branch = ? AND owner = ? "
            f"AND EXISTS (SELECT 1 FROM processes WHERE number = ? AND {IS_ALIVE} AND NOT is_leaving) "
            "ON CONFLICT (branch) DO UPDATE SET (fence, process, prompts) = (excluded.fence, excluded.process, "
            "excluded.prompts)",
            process, self.export_prompts(branch), branch, self._membership.last_number, process,
        )  # fmt: skip

    def _accept(self, branch: str, number: int, prompts: str) -> None:
        """Loads the weights of a branch that is offered to this process, and becomes its owner.

        Args:
            branch: Its name.
            number: Of this process.
            prompts: What `export_prompts` has returned in the process that offers the branch.
        """
        try:
            if not self._membership.may_own(journal.get_branch(self._store, branch)):
                raise BranchUnavailable("a process of another kind has computed its weights")
            self._load(branch)
            self.import_prompts(branch, prompts)
            changed = self._store.execute(
                "UPDATE branches SET owner = offered.process, fence = branches.fence + 1 FROM offered_branches offered "
                "WHERE branches.branch = ? AND offered.branch = branches.branch AND offered.fence = branches.fence "
                f"AND offered.process = ? AND EXISTS (SELECT 1 FROM processes WHERE number = ? AND {IS_ALIVE})",
                branch, number, number,
            )  # fmt: skip
            if changed.rowcount:
                with self._lock:  # it does not go back at once
                    self._origins[branch] = BranchOrigin(None, 0, time.monotonic())
            self._membership.mark_if_owned(branch)
        except StorageUnavailable:  # it is tried again after the next heartbeat
            raise
        except Exception as error:  # the owner keeps the branch, or gives it up without an offer
            log.warning("the branch '%s', which another process offers, is not taken over: %s", branch, error)
        self._store.execute("DELETE FROM offered_branches WHERE branch = ? AND process = ?", branch, number)
