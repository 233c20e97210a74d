"""Checks of the journal of a branch after a server has been disturbed: one decision per example, and a replay."""

import re
from collections import Counter

from ontogeny.server.learning import journal, versions
from ontogeny.server.store import Store

REPLAYED = re.compile(r"the examples after number (\d+) are learned again")


def check_decisions(store: Store, branch: str) -> None:
    """Asserts that every surviving example has one decision that is in force, or is pending.

    A version on the path to the current one has learned it once. An example outside of this path was rejected, once
    since it was last learned again.
    """
    state, path = journal.get_branch(store, branch), list[int | None]()
    version = versions.get_version(store, branch, state.current_version)
    while version.parent is not None:
        path.append(version.example)
        version = versions.get_version(store, branch, version.parent)
    assert len(set(path)) == len(path), (branch, path)
    counts = Counter[int | None]()
    for decision in journal.list_recent_decisions(store, branch, 10**9)[::-1]:
        if decision.kind in ("learned", "rejected"):
            counts[decision.example] += 1
        elif decision.kind == "erased" and (replayed := REPLAYED.search(decision.reason)) is not None:
            for number in list(counts):
                if number is not None and number > int(replayed[1]):
                    del counts[number]
    for example in list_survivors(store, branch):
        num_decisions = 1 if example.number in path else counts[example.number]
        assert num_decisions == (example.number <= state.last_decided), (branch, example)


def list_survivors(store: Store, branch: str) -> list[journal.TrainingExample]:
    """Returns the examples of a branch that are neither erased nor deferred."""
    return [e for e in journal.list_examples(store, branch) if e.erased_at is None and not e.deferred]


def list_replayed_texts(store: Store, branch: str) -> list[str]:
    """Returns what a new branch learns to equal this one: what its restored version learned, then its examples."""
    current = versions.get_version(store, branch, journal.get_branch(store, branch).current_version)
    texts = [str(example.text) for example in list_survivors(store, branch)]
    version, inherited = versions.get_version(store, branch, current.root_version), list[str]()
    while version.number:
        if version.parent is None:
            source = versions.find_source(store, version)
            assert source is not None, version
            version = source
        else:
            example = journal.find_example(store, int(version.example or 0))
            assert example is not None and example.text is not None, version
            inherited.append(example.text)
            version = versions.get_version(store, version.branch, version.parent)
    return inherited[::-1] + texts
