"""Branches of ontogeny 0.1.0, whose digest of the learner included the versions of packages.

Since then each version of weights names the packages that computed it, so that a branch continues after an upgrade. A
branch with an earlier digest is converted if the digest says that it was learned with the installed packages.
"""

import logging
from collections.abc import Callable

from ontogeny.server.learning.learner import BranchLearner
from ontogeny.server.processes.identity import add_packages, names_packages
from ontogeny.server.store import Store

log = logging.getLogger(__name__)


def convert_branches(store: Store, deployment: str, learner: BranchLearner, check: Callable[[], None]) -> int:
    """Writes the present digest of the learner into branches that have its earlier one, in one transaction.

    Their versions get the names of the packages, which the earlier digest guarantees.

    Args:
        store: The database.
        deployment: Its branches are converted.
        learner: Has both digests.
        check: Called before anything is changed; raises an exception if another process still needs earlier digests.

    Returns:
        The number of branches that were converted.
    """
    condition = "deployment = ? AND learner_digest = ?"
    query = f"SELECT 1 FROM branches WHERE {condition} LIMIT 1"
    earlier = learner.earlier_digest
    if earlier is None or store.select_value(query, deployment, earlier) is None:
        return 0
    check()
    with store.transaction():
        learned = f"example IS NOT NULL AND branch IN (SELECT branch FROM branches WHERE {condition})"
        query = f"SELECT DISTINCT computed_by FROM versions WHERE {learned}"
        for recorded in store.select_values(query, deployment, earlier):
            if recorded is None or not names_packages(recorded):
                compared, parameters = ("IS NULL", ()) if recorded is None else ("= ?", (recorded,))
                query = f"UPDATE versions SET computed_by = ? WHERE computed_by {compared} AND {learned}"
                store.execute(query, add_packages(recorded), *parameters, deployment, earlier)
        query = f"UPDATE branches SET learner_digest = ? WHERE {condition}"
        count = store.execute(query, learner.digest, deployment, earlier).rowcount
    log.info("branches of '%s' that name the packages they were computed with from now on: %d", deployment, count)
    return count
