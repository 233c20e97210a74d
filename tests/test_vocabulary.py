"""The project is written in the words of its field: names, comments, docstrings, help texts, pages and documentation.

`tests/vocabulary.toml` holds the lists; `docs/architecture.md` holds the table that they must cover. To see the
violations of some files: `python tests/test_vocabulary.py src/ontogeny/audit`.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LISTS = tomllib.loads((ROOT / "tests" / "vocabulary.toml").read_text(encoding="utf-8"))
IDENTIFIER = re.compile(r"[^\W\d]\w*")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
PYTHON_FOLDERS = ("src", "tests", "benchmarks", "docs")
PROSE_SUFFIXES = (".md", ".html", ".j2", ".toml", ".css")
MAX_LINE_LENGTH = 120


class Violation(NamedTuple):
    """One use of a banned word."""

    path: str
    line: int
    word: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: '{self.word}' in {self.text[:100]!r}"


def words_of(identifier: str) -> list[str]:
    """The words of an identifier in lower case: `LifetimeKeys` -> lifetime, keys."""
    return [word.lower() for word in WORD.findall(identifier)]


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and identifier of everything that a module defines: functions, classes, parameters, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield getattr(node, "lineno", 0), node.asname


@cache
def banned_in(identifier: str, package: str) -> str | None:
    """The banned word in an identifier of a package such as `audit/organisms`, or None."""
    bare = identifier.strip("_").lower()
    if bare in LISTS["whole_names"]:
        return bare
    joined = "_".join(words_of(identifier))
    for allowed in LISTS["allowed_compounds"]:
        joined = joined.replace(allowed, "")
    inside = [word for word in joined.split("_") if word]
    for word in inside:
        if word in LISTS["name_parts"]:
            return word
        if any(package.startswith(place) for place in LISTS["by_package"].get(word, ())):
            return word
    return None


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the comments and of the strings that hold sentences, docstrings included."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        middle = token.type == getattr(tokenize, "FSTRING_MIDDLE", -1)
        if token.type == tokenize.COMMENT or middle or (token.type == tokenize.STRING and " " in token.string):
            yield token.start[0], token.string


def banned_in_prose(text: str) -> Iterator[tuple[int, str]]:
    """Offset in lines and banned words of a text; a phrase may be broken over two lines."""
    for pattern in PROSE:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()), match.group(0)


def without_table(text: str) -> str:
    """A page without the rows of the vocabulary table, with as many lines."""
    before, mark, rest = text.partition("<!-- vocabulary -->")
    table, _, after = rest.partition("<!-- /vocabulary -->")
    return before + "\n" * table.count("\n") + after if mark else text


PROSE = [re.compile(pattern, re.IGNORECASE) for pattern in LISTS["prose"]]
# Begins wherever a banned word may begin, in a text in lower case: conditions on the text around the word are left out.
CANDIDATES = re.compile("|".join(f"(?:{pattern.partition('(?')[0]})" for pattern in LISTS["prose"]))


def is_exempt(violation: Violation) -> bool:
    return any(
        violation.path == exemption["path"] and violation.word.lower() in exemption["words"]
        for exemption in LISTS["exemptions"]
    )


def violations(path: Path, text: str | None = None) -> list[Violation]:
    """Every use of a banned word in a file, exemptions left out."""
    name = path.relative_to(ROOT).as_posix() if path.is_absolute() else path.as_posix()
    source = path.read_text(encoding="utf-8") if text is None else text
    may_hold_prose = CANDIDATES.search(source.lower()) is not None  # much quicker than to separate prose from code
    lines = source.splitlines()
    found: list[Violation] = []
    if path.suffix == ".py":
        package = name.removeprefix("src/ontogeny/")
        for number, identifier in defined_names(ast.parse(source)):
            if word := banned_in(identifier, package):
                found.append(Violation(name, number, word, identifier))
        for number, prose in prose_of(source) if may_hold_prose else ():
            for offset, word in banned_in_prose(prose):
                found.append(Violation(name, number + offset, word, lines[number + offset - 1].strip()))
    elif may_hold_prose:
        for number, word in banned_in_prose(without_table(source)):
            found.append(Violation(name, number + 1, word, lines[number].strip()))
    return [violation for violation in dict.fromkeys(found) if not is_exempt(violation)]


def files() -> list[Path]:
    """All files that are checked; test data, golden files and the changelog quote old names and foreign text."""
    left_out = [ROOT / place for place in LISTS["not_checked"]]
    paths = [path for folder in PYTHON_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    paths += [path for folder in ("src", "docs") for path in sorted((ROOT / folder).rglob("*"))]
    paths += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [
        path
        for path in dict.fromkeys(paths)
        if (path.suffix == ".py" or path.suffix in PROSE_SUFFIXES)
        and not any(path == place or place in path.parents for place in left_out)
        and "_build" not in path.parts
    ]


def long_lines(text: str) -> Iterator[int]:
    """The lines of a page, numbered from 1, that are too long; code, tables and pictures cannot be broken."""
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        if len(line) > MAX_LINE_LENGTH and not in_code and not line.lstrip().startswith(("|", "![")):
            yield number


# Occurrences of these names in `src` before the vocabulary was introduced; they may rise by at most 100 in all.
GENERIC_NAMES = ("result", "value", "data", "item", "output")
GENERIC_NAMES_BEFORE = 445


def table_entries() -> list[str]:
    """Every word and phrase in the left column of the vocabulary table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("<!-- vocabulary -->")[1].split("<!-- /vocabulary -->")[0]
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    return [entry.strip() for row in rows for entry in row.split(",")]


def is_covered(entry: str) -> bool:
    names = {*LISTS["whole_names"], *LISTS["name_parts"], *LISTS["by_package"], *LISTS["field_terms"]}
    return entry in names or any(True for _ in banned_in_prose(entry))


def generic_names() -> int:
    count = 0
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if set(GENERIC_NAMES).isdisjoint(IDENTIFIER.findall(source)):
            continue
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            count += token.type == tokenize.NAME and token.string in GENERIC_NAMES
    return count


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "docs", "README.md", "CONTRIBUTING.md"])
def test_no_banned_word_is_used(folder):
    place = ROOT / folder
    chosen = [path for path in files() if path == place or place in path.parents]
    assert chosen
    assert not [str(violation) for path in chosen for violation in violations(path)]


def test_lines_of_pages_are_not_too_long():
    pages = [path for path in files() if path.suffix == ".md"]
    text = {path: path.read_text(encoding="utf-8") for path in pages}
    assert not [f"{path}:{number}" for path in pages for number in long_lines(text[path])]
    planted = "x" * 121 + "\n| " + "x" * 121 + "\n```\n" + "x" * 121 + "\n```\n" + "x" * 121
    assert list(long_lines(planted)) == [1, 6]


def test_the_lists_cover_every_entry_of_the_vocabulary_table():
    entries = table_entries()
    assert len(entries) > 50
    assert not [entry for entry in entries if not is_covered(entry)]


@pytest.mark.parametrize("entry", ["a phrase that no list has", "unlistedword"])
def test_a_missing_entry_of_the_table_is_detected(entry):
    assert not is_covered(entry)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("src/ontogeny/stages/train.py", "def evaluate(world): ...\n"),
        ("src/ontogeny/stages/train.py", "found = 1\n"),
        ("src/ontogeny/stages/train.py", "class HonestAgent: ...\n"),
        ("src/ontogeny/stages/train.py", "x = y.other = 1\n"),
        ("src/ontogeny/stages/train.py", "# an agent is born here\n"),
        ("src/ontogeny/stages/train.py", '"""A life in the world."""\n'),
        ("src/ontogeny/stages/train.py", "def f(): raise ValueError(f'the world {1} is unknown')\n"),
        ("src/ontogeny/engine/scheduler.py", "def next_row(row): ...\n"),
        ("src/ontogeny/server/api/app.py", "line = 1\n"),
        ("docs/page.md", "The behaviour of the agent."),
        ("src/ontogeny/server/templates/page.html.j2", "<p>A contribution was refused by the house.</p>"),
    ],
)
def test_a_planted_violation_is_detected(place, source):
    assert violations(ROOT / place, source)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("src/ontogeny/stages/train.py", "class WorldModel: ...\nlifetime_keys = 1\n"),
        ("src/ontogeny/audit/behavior/reading.py", "for row in rows: ...\n"),
        ("docs/page.md", "A world model is learned within one lifetime."),
    ],
)
def test_terms_of_the_field_are_allowed(place, source):
    assert not violations(ROOT / place, source)


def test_exemptions_are_few_and_have_reasons():
    assert len(LISTS["exemptions"]) <= 30
    assert all(exemption["reason"] and (ROOT / exemption["path"]).exists() for exemption in LISTS["exemptions"])
    assert all(reason for reason in LISTS["field_terms"].values())


def test_generic_names_do_not_replace_private_ones():
    assert generic_names() <= GENERIC_NAMES_BEFORE + 100


if __name__ == "__main__":
    chosen = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    count = 0
    for path in files():
        if any(path == place or place in path.parents for place in chosen):
            for violation in violations(path):
                count += 1
                print(violation)
    print(count, "violations")
