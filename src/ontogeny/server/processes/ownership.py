"""Which process may answer from the weights of a branch and learn its examples.

A branch of a SQLite database belongs to the only server of that database. In a database that several processes share,
`membership.Membership` decides.
"""

from abc import ABC, abstractmethod

from ontogeny.server.learning import journal
from ontogeny.server.learning.journal import Branch
from ontogeny.server.store import Store


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

    Attributes:
        computed_by: What the bits of learned weights depend on: processor, jaxlib and product path.
    """

    computed_by: str | None

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


class SoleOwnership(BranchOwnership):
    """The ownership of the only server of a database.

    Args:
        store: The database.
        computed_by: See `BranchOwnership`.
    """

    def __init__(self, store: Store, computed_by: str | None = None) -> None:
        self._store, self.computed_by = store, computed_by

    def claim(self, branch: Branch) -> Branch:
        """Returns the branch."""
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
