"""Which process may answer from the weights of a branch and learn its examples.

A branch of a SQLite database belongs to the only server of that database. In a database that several processes share,
`membership.Membership` decides.
"""

import contextlib
import logging
from abc import ABC, abstractmethod

from ontogeny.errors import BadInput, StorageUnavailable
from ontogeny.server.learning import journal, versions
from ontogeny.server.learning.journal import Branch
from ontogeny.server.processes.identity import computes_equally
from ontogeny.server.store import Store

MIXED = "mixed"  # the kind of the decision that other bits follow from now on
log = logging.getLogger(__name__)


class OwnedElsewhere(Exception):
    """Another process owns the branch that a request needs.

    Args:
        number: The process.
        url: Where it receives requests; empty if it is not known at present which process is the owner.
    """

    def __init__(self, number: int, url: str) -> None:
        super().__init__(f"process {number} at {url} owns the branch")
        self.number, self.url = number, url


class BranchOwnership(ABC):
    """The branches of this process.

    Args:
        store: The database.
        computed_by: See the attribute.

    Attributes:
        computed_by: What the bits of learned weights depend on: processor and packages; None if no version names it.
    """

    def __init__(self, store: Store, computed_by: str | None) -> None:
        self._store, self.computed_by = store, computed_by
        self._epochs: dict[str, int] = {}  # of branches at the time when `mark_mixed` was called last

    @property
    def number(self) -> int | None:
        """The number of this process in a shared database while it has a lease, otherwise None."""
        return None

    @abstractmethod
    def claim(self, branch: Branch) -> Branch:
        """Makes this process the owner of a branch, unless it is already; returns the branch as it is then.

        Raises:
            OwnedElsewhere: Another process owns the branch or is to own it.
            StorageUnavailable: This process cannot own any branch at present.
            BranchUnavailable: Only a process with another processor or other packages may own the branch.
        """

    @abstractmethod
    def owns(self, branch: Branch) -> bool:
        """Whether a branch, as it was read, belongs to this process."""

    @abstractmethod
    def list_branches_to_learn(self, deployment: str) -> list[str]:
        """Returns the names of branches with undecided examples that this process owns or may take over."""

    @abstractmethod
    def list_branches_to_load(self, deployment: str, max_branches: int) -> list[str]:
        """Returns the names of branches whose weights are computed when the process starts."""

    def check_conversion(self) -> None:  # noqa: B027
        """Raises `BadInput` if another process cannot use branches that are converted; see `earlier_digests`."""

    def report_computations(self, deployment: str) -> None:  # noqa: B027
        """Logs at the start how many branches of a deployment others have computed, if this process continues them."""

    def find_other_computation(self, branch: Branch) -> str | None:
        """Returns what has computed the current version of a branch, or None if this process computes equal bits."""
        if self.computed_by is None:
            return None
        recorded = versions.get_version(self._store, branch.branch, branch.current_version).computed_by
        return None if recorded is None or computes_equally(self.computed_by, recorded) else recorded

    def is_marked(self, branch: Branch, recorded: str) -> bool:
        """Whether the log of a branch says that the bits of this process follow its current version.

        Args:
            branch: As it was read.
            recorded: What has computed the current version.
        """
        query = "SELECT 1 FROM decisions WHERE branch = ? AND kind = ? AND version = ? AND reason = ? LIMIT 1"
        parameters = (branch.branch, MIXED, branch.current_version, describe_change(recorded, self.computed_by))
        return self._store.select_value(query, *parameters) is not None

    def mark_mixed(self, branch: Branch) -> None:
        """Records that the next weights of a branch are computed by another kind of machine or program than before."""
        recorded = self.find_other_computation(branch)
        if recorded is not None:
            with self._store.transaction(branch.branch):
                if not self.is_marked(branch, recorded):
                    version, reason = branch.current_version, describe_change(recorded, self.computed_by)
                    journal.log_decision(self._store, branch.branch, MIXED, None, version, None, reason)
        self._epochs[branch.branch] = branch.epoch

    def mark_if_changed(self, branch: Branch) -> None:
        """Does what `mark_mixed` does for a branch of this process, if its current version was changed by a command.

        A failure is repeated with the next call, so that requests are answered also while the disk is full.
        """
        if self.computed_by is not None and self._epochs.get(branch.branch) != branch.epoch:
            with contextlib.suppress(StorageUnavailable, BadInput):  # a damaged database may have lost the version
                self.mark_mixed(branch)


class SoleOwnership(BranchOwnership):
    """The ownership of the only server of a database.

    No other process could compute the bits of branches from before an upgrade, so that this one continues them.

    Args:
        store: The database.
        computed_by: See `BranchOwnership`.
    """

    def __init__(self, store: Store, computed_by: str | None = None) -> None:
        super().__init__(store, computed_by)

    def claim(self, branch: Branch) -> Branch:
        """Returns the branch, after its log says whether other bits follow from now on."""
        self.mark_if_changed(branch)
        return branch

    def owns(self, branch: Branch) -> bool:
        """True."""
        return True

    def list_branches_to_learn(self, deployment: str) -> list[str]:
        """Returns the names of all branches with undecided examples."""
        return journal.list_branches_to_learn(self._store, deployment)

    def list_branches_to_load(self, deployment: str, max_branches: int) -> list[str]:
        """Returns the names of some branches."""
        query = "SELECT branch FROM branches WHERE deployment = ? ORDER BY branch DESC LIMIT ?"
        return self._store.select_values(query, deployment, max_branches)[::-1]

    def report_computations(self, deployment: str) -> None:
        """Logs one warning about branches that another kind of machine, or other versions, computed."""
        if self.computed_by is None:
            return
        counts = {
            recorded: count
            for recorded, count in versions.count_current_computations(self._store, deployment).items()
            if not computes_equally(self.computed_by, recorded)
        }
        if counts:
            kinds = ", ".join(f"{count:,} by '{recorded}'" for recorded, count in counts.items())
            log.warning(
                "branches of '%s' were computed by another kind of machine or by other versions of packages: %s; this "
                "server computes with '%s', and continues from the snapshots of their weights (the log of each branch "
                "says from which version on; see the how-to on keys and deployments)",
                deployment, kinds, self.computed_by,
            )  # fmt: skip


def describe_change(recorded: str, computed_by: str | None) -> str:
    """The reason of the decision that the bits of one computation follow those of another one.

    Args:
        recorded: What has computed the weights.
        computed_by: What computes the next ones.
    """
    return f"computed by '{recorded}' so far, and by '{computed_by}' from now on"
