"""Queries for clients and operators. Their cost does not grow with the length of the journal."""

from typing import Literal, NamedTuple

from ontogeny.server.learning.journal import UNDECIDED, Branch, TrainingExample, get_branch
from ontogeny.server.learning.text_scores import ScoredText
from ontogeny.server.learning.versions import BranchVersion, get_version
from ontogeny.server.store import Store

MAX_PAGE_LENGTH = 1000


class PageRequest(NamedTuple):
    """Which part of a list a client asks for.

    Attributes:
        limit: The number of entries.
        after: The number of the entry after which the page begins; None for the beginning of the list.
        is_descending: Whether the largest numbers come first.
    """

    limit: int = MAX_PAGE_LENGTH
    after: int | None = None
    is_descending: bool = False

    @property
    def query(self) -> str:
        """The end of a query that returns the page and one entry more; its parameters are `parameters`."""
        if self.is_descending:
            return "(CAST(? AS BIGINT) IS NULL OR number < ?) ORDER BY number DESC LIMIT ?"
        return "(CAST(? AS BIGINT) IS NULL OR number > ?) ORDER BY number LIMIT ?"

    @property
    def parameters(self) -> tuple[int | None, ...]:
        """The parameters of `query`."""
        return self.after, self.after, self.limit + 1


ExampleStatus = Literal["waiting", "learned", "rejected", "set_aside"]


class ListedExample(NamedTuple):
    """An example and what has become of it.

    Attributes:
        number: That of `TrainingExample`, like the following fields up to `created_at`.
        branch: See `number`.
        key: See `number`.
        text: See `number`.
        deferred: See `number`.
        erased_at: See `number`.
        created_at: See `number`.
        status: `waiting` to be learned; `learned` by the current version; `rejected` by the acceptance test; or
            `set_aside` by a rollback or a restored state that leaves it out.
        reason: That of the rejection.
        share: The share of the example's step that was taken when it was learned; 0 for a rejected one, None for one
            that waits.
    """

    number: int
    branch: str
    key: str
    text: str | None
    deferred: bool
    erased_at: float | None
    created_at: float
    status: ExampleStatus
    reason: str | None
    share: float | None


class DecisionCount(NamedTuple):
    """The number of decisions about the branches of a deployment, up to one of them."""

    num_decisions: int = 0
    num_learned: int = 0  # examples that were learned, in whole or in part
    num_learned_in_part: int = 0
    num_rejected: int = 0
    sum_of_shares: float = 0.0  # of the steps of all learned examples
    newest: int = 0  # the number of the last decision that is included


def list_examples_of_key(store: Store, branch: str, key: str, page: PageRequest) -> tuple[list[ListedExample], bool]:
    """Returns examples that a key has added to a branch and that are not erased, and whether there are more."""
    query = f"SELECT * FROM examples WHERE branch = ? AND key = ? AND erased_at IS NULL AND {page.query}"
    with store.read_transaction():
        examples = store.select(TrainingExample, query, branch, key, *page.parameters)
        state = get_branch(store, branch)
        listed = [ListedExample(*example, *_find_outcome(store, state, example)) for example in examples[: page.limit]]
    return listed, len(examples) > page.limit


def list_versions_of_branch(store: Store, branch: str, page: PageRequest) -> tuple[list[BranchVersion], bool]:
    """Returns versions of a branch, deleted ones included, and whether there are more."""
    query = f"SELECT * FROM versions WHERE branch = ? AND {page.query}"
    versions = store.select(BranchVersion, query, branch, *page.parameters)
    return versions[: page.limit], len(versions) > page.limit


def num_pending_of_deployment(store: Store, deployment: str) -> int:
    """The number of undecided examples in all branches of a deployment."""
    query = (
        f"SELECT count(*) FROM branches {store.database.ordered_join} examples USING (branch) "
        f"WHERE deployment = ? AND newest_example > last_decided AND number > last_decided AND {UNDECIDED}"
    )
    return store.select_value(query, deployment)


def continue_count(store: Store, deployment: str, earlier: DecisionCount) -> DecisionCount:
    """Counts the decisions about a deployment that were made since an earlier count."""
    query = (
        "SELECT count(*), count(*) FILTER (WHERE kind = 'learned'), "
        "count(*) FILTER (WHERE kind = 'learned' AND share < 1), count(*) FILTER (WHERE kind = 'rejected'), "
        "coalesce(sum(share), 0), coalesce(max(number), ?) FROM decisions JOIN branches USING (branch) "
        "WHERE decisions.number > ? AND deployment = ?"
    )
    *counts, newest = store.execute(query, earlier.newest, earlier.newest, deployment)[0]
    num_decisions, num_learned, num_in_part, num_rejected, share = counts
    return DecisionCount(
        earlier.num_decisions + num_decisions,
        earlier.num_learned + num_learned,
        earlier.num_learned_in_part + num_in_part,
        earlier.num_rejected + num_rejected,
        earlier.sum_of_shares + share,
        newest,
    )


def list_scores(store: Store, branch: str, page: PageRequest) -> tuple[list[ScoredText], bool]:
    """Returns scores of a branch in the order in which the learner reached the texts, and whether there are more."""
    query = f"SELECT * FROM text_scores WHERE branch = ? AND {page.query}"
    scores = store.select(ScoredText, query, branch, *page.parameters)
    return scores[: page.limit], len(scores) > page.limit


def _find_outcome(
    store: Store, branch: Branch, example: TrainingExample
) -> tuple[ExampleStatus, str | None, float | None]:
    """The status of an example, the reason of a rejection, and the share of its step; needs a transaction."""
    if example.number > branch.last_decided and not example.deferred:
        return "waiting", None, None
    query = (
        "SELECT kind, reason, share FROM decisions WHERE example = ? AND kind IN ('learned', 'rejected') "
        "ORDER BY number DESC LIMIT 1"
    )
    kind, reason, share = next(iter(store.execute(query, example.number)), (None, None, None))
    if kind == "rejected":
        return "rejected", reason, share
    root = get_version(store, branch.branch, branch.current_version).root_version
    query = "SELECT 1 FROM inherited_examples WHERE branch = ? AND version = ? AND example = ?"
    is_learned = not example.deferred or store.select_value(query, branch.branch, root, example.number) is not None
    return "learned" if is_learned else "set_aside", None, share
