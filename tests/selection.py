"""Which of many cases of one test belong to the default suite; the other ones run with `make test-slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(quick: Collection[Any], cases: Iterable[Any], *, unpack: bool = True) -> list[Any]:
    """Marks cases as slow.

    Args:
        quick: The cases of the default suite.
        cases: All cases.
        unpack: Whether the members of a tuple are several arguments.

    Returns:
        The cases, for `pytest.mark.parametrize` or as the parameters of a fixture.
    """
    cases = [*cases]
    absent = [case for case in quick if case not in cases]
    assert not absent, f"there are no cases {absent}"
    return [
        case
        if case in quick
        else pytest.param(*(case if unpack and isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
