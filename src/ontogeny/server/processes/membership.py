"""The lease of a server process in a database that several processes share, and the branches that it owns.

A process has one record, whose lease a thread renews; a branch names its owner and a fencing number, so that renewing
costs the same however many branches there are. The database's clock times the lease. The process itself compares a
clock that goes on while it is suspended, from before the lease was renewed, so that it never believes in a lease that
the database has ended. A process that has lost its lease registers again, under a new number.

Two things together keep a former owner from doing harm: statements that write a branch compare its fencing number, and
an answer begins only while the lease is valid.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ontogeny import __version__
from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.background import BackgroundThread
from ontogeny.server.learning import journal
from ontogeny.server.learning.journal import Branch
from ontogeny.server.learning.loading import BranchUnavailable
from ontogeny.server.processes.identity import computes_equally, names_packages
from ontogeny.server.processes.ownership import BranchOwnership, OwnedElsewhere
from ontogeny.server.store import Store

LEASE = 1.5  # seconds
RENEWAL_INTERVAL = 0.4  # seconds
IS_ALIVE = "expires_at > clock_timestamp()"
OWNER_IS_ALIVE = f"EXISTS (SELECT 1 FROM processes WHERE processes.number = branches.owner AND {IS_ALIVE})"
WITHDRAW_OFFERS = (  # of a process that ends, and those that others have made to it
    "DELETE FROM offered_branches WHERE process = ? OR branch IN (SELECT branch FROM branches WHERE owner = ?)"
)
FIRST_NUMBER = "first_number"  # in the options of a process that has registered again
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps, where there is one
log = logging.getLogger(__name__)


class Load(NamedTuple):
    """The requests of a process, for `ontogeny deployments status`."""

    num_running: int
    num_waiting: int


class ServerProcess(NamedTuple):
    """A process that has a lease."""

    number: int
    name: str
    url: str
    computed_by: str
    program: str  # version of ontogeny
    started_at: float  # seconds since 1970
    num_running: int
    num_waiting: int
    is_leaving: bool  # whether it has been told to stop
    allow_mixed: bool
    options: str  # JSON; see `options.describe_options`

    @property
    def rank(self) -> int:
        """The number under which it registered first; that of a process that was started later is higher."""
        return json.loads(self.options).get(FIRST_NUMBER, self.number)


class _Renewal(NamedTuple):
    """What the database says when a lease is renewed."""

    num_expired: int  # processes whose lease has expired
    has_offers: bool  # whether branches are offered to this process
    newest: int | None  # the highest number of a process, if the options of processes differ


class Membership(BranchOwnership):
    """This process among those that share a database.

    Args:
        store: The database.
        computed_by: See `identity.describe_computation`.
        allow_mixed: Whether this process may own branches whose weights another kind of machine or program computed.
        find_load: Returns the present load.

    Attributes:
        options: Those with which this process was started; see `options.describe_options`.
        newest_differing: The highest number of a process while the options of processes differ, otherwise None.
        on_offered: Called after a renewal of the lease while other processes offer branches to this one.
    """

    def __init__(self, store: Store, computed_by: str, *, allow_mixed: bool, find_load: Callable[[], Load]) -> None:
        super().__init__(store, computed_by)
        self.allow_mixed, self._find_load = allow_mixed, find_load
        self.options: Mapping[str, Any] = {}
        self.newest_differing: int | None = None
        self._first_number: int | None = None
        self.name, self.url = "", ""
        self._lease: tuple[int, float] | None = None  # number, and the time of `CLOCK` at which the lease ends
        self.last_number: int | None = None  # the last number, also after the lease
        self.is_leaving = self._has_warned = self._has_announced_end = False
        self.on_offered: Callable[[], None] = lambda: None
        self._thread = BackgroundThread("lease", self._keep_lease, pause=RENEWAL_INTERVAL, delay=RENEWAL_INTERVAL)

    def start(self, name: str, url: str) -> None:
        """Registers the process and begins to renew its lease.

        Args:
            name: The name of the process, for people.
            url: Where it receives requests.
        """
        self.name, self.url = name, url
        self._thread.attempt()
        self._thread.start()

    def announce_end(self) -> None:
        """Tells the other processes that this one is about to stop, so that they give it no branches."""
        self._has_announced_end = True  # first, because the process may be about to register again
        self._store.execute("UPDATE processes SET is_leaving = TRUE WHERE number = ?", self.last_number)

    def leave(self) -> None:
        """Gives all branches up, so that other processes can take them over at once, and ends the lease."""
        self._thread.stop()
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            with self._store.transaction():
                self._store.execute(WITHDRAW_OFFERS, lease[0], lease[0])
                self._store.execute("UPDATE branches SET owner = NULL, fence = fence + 1 WHERE owner = ?", lease[0])
                self._store.execute("DELETE FROM processes WHERE number = ?", lease[0])
        except StorageUnavailable as error:  # the lease ends by itself
            log.warning("the branches of this process cannot be given up at present: %s", error)

    @property
    def number(self) -> int | None:
        """The number of this process, or None while it has no lease."""
        lease = self._lease
        return None if lease is None or time.clock_gettime(CLOCK) >= lease[1] else lease[0]

    @property
    def is_cut_off(self) -> bool:
        """Whether this process has no lease, and gets none before the database can be reached again."""
        return self.number is None and self._store.database.failed_at is not None

    def claim(self, branch: Branch) -> Branch:
        """Makes this process the owner of a branch; see `BranchOwnership.claim`."""
        while True:
            number = self.number
            if number is None and self.is_leaving:  # a request that began before
                successor = self.find_successor()
                raise OwnedElsewhere(0, "") if successor is None else OwnedElsewhere(successor.number, successor.url)
            if number is None and self.is_cut_off:
                raise StorageUnavailable("this process has no lease from the database at present")
            if number is None:
                raise OwnedElsewhere(0, "")  # until this process has a lease again, which takes a moment
            if branch.owner == number:
                self.mark_if_changed(branch)
                return branch
            owner = self.find_process(branch.owner)
            if owner is not None:
                raise OwnedElsewhere(owner.number, owner.url)
            self._check_computation(branch)
            self._end_expired()  # so that an open transaction of the former owner holds up nothing
            self._store.execute(
                f"UPDATE branches SET owner = ?, fence = fence + 1 WHERE branch = ? AND NOT {OWNER_IS_ALIVE} "
                f"AND EXISTS (SELECT 1 FROM processes WHERE number = ? AND {IS_ALIVE})",
                number, branch.branch, number,
            )  # fmt: skip
            branch = journal.get_branch(self._store, branch.branch)
            if branch.owner == number:
                self.mark_mixed(branch)

    def owns(self, branch: Branch) -> bool:
        """Whether a branch, as it was read, belongs to this process."""
        return branch.owner is not None and branch.owner == self.number

    def list_branches_to_learn(self, deployment: str) -> list[str]:
        """Returns the branches with undecided examples that this process owns, or whose owner has no lease."""
        if (number := self.number) is None:
            return []
        return journal.list_branches_to_learn(self._store, deployment, f"(owner = ? OR NOT {OWNER_IS_ALIVE})", number)

    def list_branches_to_load(self, deployment: str, max_branches: int) -> list[str]:
        """Returns nothing: a process computes the weights of a branch when it becomes the owner."""
        return []

    def find_process(self, number: int | None) -> ServerProcess | None:
        """Returns the process of this number if it has a lease."""
        if number is None:
            return None
        query = f"SELECT {', '.join(ServerProcess._fields)} FROM processes WHERE number = ? AND {IS_ALIVE}"
        return self._store.select_one(ServerProcess, query, number)

    def list_earlier(self) -> list[ServerProcess]:
        """Returns the processes that registered before this one; all of them until this one has registered."""
        rank, processes = self._first_number, list_processes(self._store)
        return processes if rank is None else [process for process in processes if process.rank < rank]

    def find_equal_processes(self) -> list[ServerProcess]:
        """Returns the other processes that compute bitwise equal weights and have not been told to stop."""
        return [process for process in self._list_others() if process.computed_by == self.computed_by]

    def find_successors(self) -> list[ServerProcess]:
        """Returns the processes that can own the branches of this one when it ends.

        They compute bitwise equal weights. If there are none, as when the last process with earlier versions of
        packages ends, they are those that may own any branch.
        """
        processes = self._list_others()
        equal = [process for process in processes if process.computed_by == self.computed_by]
        return equal or [process for process in processes if process.allow_mixed]

    def find_successor(self) -> ServerProcess | None:
        """Returns a process that can own the branches of this one when it ends, or None."""
        return next(iter(self.find_successors()), None)

    def may_own(self, branch: Branch) -> bool:
        """Whether this process may own a branch, because of what has computed its current weights."""
        recorded = self.find_other_computation(branch)
        return recorded is None or self.allow_mixed or self.is_marked(branch, recorded)

    def mark_if_owned(self, name: str) -> None:
        """Does what `mark_mixed` does if this process owns the branch of this name."""
        branch = journal.get_branch(self._store, name)
        if self.owns(branch):
            self.mark_mixed(branch)

    def check_conversion(self) -> None:
        """Raises `BadInput` if a process runs that cannot use branches with the present digest of the learner."""
        earlier = [process for process in list_processes(self._store) if not names_packages(process.computed_by)]
        if earlier:
            raise BadInput(
                "the branches are converted for this version of ontogeny, for which all processes of an earlier one "
                f"must be stopped: process {earlier[0].number} ('{earlier[0].name}') runs"
            )

    def _list_others(self) -> list[ServerProcess]:
        """The other processes that have not been told to stop."""
        processes = list_processes(self._store, "AND NOT is_leaving")
        return [process for process in processes if process.number != self.last_number]

    def _check_computation(self, branch: Branch) -> None:
        """Raises an exception if this process would compute the weights of a branch to other bits.

        Raises:
            OwnedElsewhere: A process exists that would compute them as they are, or may own any branch.
            BranchUnavailable: None does.
        """
        recorded = self.find_other_computation(branch)
        if recorded is None or self.allow_mixed or self.is_marked(branch, recorded):
            return
        processes = [process for process in list_processes(self._store) if process.number != self.last_number]
        equal = [process for process in processes if computes_equally(process.computed_by, recorded)]
        mixed = [process for process in processes if process.allow_mixed and not process.is_leaving]
        for process in (*equal, *mixed):
            raise OwnedElsewhere(process.number, process.url)
        reason = (
            f"the weights of '{branch.branch}' were computed by '{recorded}', and no process of that kind runs, nor "
            f"one with --allow-mixed; this one computes with '{self.computed_by}'"
        )
        if not self._has_warned:
            log.warning("%s (this is the first such branch; see the how-to on many processes)", reason)
            self._has_warned = True
        raise BranchUnavailable(reason)

    def _keep_lease(self) -> float:
        """Renews the lease, or registers the process if it has none; a failure is repeated with the next call.

        Returns:
            The seconds until the next call: the interval is the same however long the database takes to answer.
        """
        called_at = time.monotonic()
        try:
            with self._store.database.reserved_connection(LEASE):
                begun_at, lease = time.clock_gettime(CLOCK), self._lease
                renewal = None if lease is None else self._renew(lease[0])
                if lease is None or renewal is None:
                    self._lease = None
                    number = self._register()
                    if lease is not None:
                        log.warning("the lease of process %d has expired; the process is number %d", lease[0], number)
                    lease = (number, 0.0)
                self._lease, self.last_number = (lease[0], begun_at + LEASE), lease[0]
                self._store.process_number = lease[0]
                if renewal is None or renewal.num_expired:
                    self._end_expired()
                if renewal is not None:
                    self.newest_differing = renewal.newest
                    if renewal.has_offers:
                        self.on_offered()
        except StorageUnavailable as error:
            log.info("the lease cannot be renewed at present: %s", error)
        return max(0.0, called_at + RENEWAL_INTERVAL - time.monotonic())

    def _register(self) -> int:
        """Adds the record of this process; returns its number."""
        store, rank = self._store, {} if self._first_number is None else {FIRST_NUMBER: self._first_number}
        number = store.select_value(
            "INSERT INTO processes (name, url, token, computed_by, program, allow_mixed, is_leaving, options, "
            "started_at, renewed_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, clock_timestamp(), "
            "clock_timestamp() + ? * INTERVAL '1 second') RETURNING number",
            self.name, self.url, store.database.connection_name, self.computed_by, __version__, self.allow_mixed,
            self._has_announced_end, json.dumps({**self.options, **rank}), time.time(), LEASE,
        )  # fmt: skip
        self._first_number = self._first_number or number
        return number

    def _renew(self, number: int) -> "_Renewal | None":
        """Extends the lease, unless it has expired."""
        load = self._find_load()
        query = (
            "UPDATE processes SET renewed_at = clock_timestamp(), num_running = ?, num_waiting = ?, "
            f"expires_at = clock_timestamp() + ? * INTERVAL '1 second' WHERE number = ? AND {IS_ALIVE} "
            f"RETURNING (SELECT count(*) FROM processes WHERE NOT {IS_ALIVE}) AS num_expired, "
            "EXISTS (SELECT 1 FROM offered_branches WHERE process = number) AS has_offers, "
            f"(SELECT CASE WHEN count(DISTINCT options::jsonb - '{FIRST_NUMBER}') > 1 THEN max(number) END "
            f"FROM processes WHERE {IS_ALIVE}) AS newest"
        )
        return self._store.select_one(_Renewal, query, *load, LEASE, number)

    def _end_expired(self) -> None:
        """Removes processes whose lease has expired, and closes their connections with any open transaction."""
        query = "DELETE FROM processes WHERE expires_at <= clock_timestamp() RETURNING token"
        tokens = self._store.select_values(query)
        for token in tokens:
            if token != self._store.database.connection_name:
                self._store.database.end_connections(token)
        if tokens:
            self._store.execute("DELETE FROM offered_branches WHERE process NOT IN (SELECT number FROM processes)")


def list_processes(store: Store, condition: str = "") -> list[ServerProcess]:
    """Returns all processes that have a lease, in the order of their start.

    Args:
        store: The database.
        condition: A further condition, after AND.
    """
    query = f"SELECT {', '.join(ServerProcess._fields)} FROM processes WHERE {IS_ALIVE} {condition} ORDER BY number"
    return store.select(ServerProcess, query)
