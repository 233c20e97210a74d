"""Every promise of the server names tests that exist, so that no promise loses its test when a test is renamed."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "maintainers" / "guarantee-tests.md"


def named_tests() -> list[tuple[str, str]]:
    """File and function of every test that the page names."""
    return re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))


@cache
def functions_of(path: str) -> set[str]:
    """The names of the functions that a file defines."""
    return set(re.findall(r"^(?:async )?def (\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))


def test_every_named_test_exists():
    for path, name in named_tests():
        assert name in functions_of(path), f"{PAGE.name} names {path}::{name}, which does not exist"


def test_every_promise_names_a_test():
    promises = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(promises) >= 15
    for promise in promises:
        assert re.search(r"`tests/\w+\.py::\w+`", promise), promise
    assert len(named_tests()) >= 40
