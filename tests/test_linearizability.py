"""The check of histories for linearizability by Porcupine: valid histories pass, planted violations do not.

The program needs Go and the module Porcupine, which Go downloads, or finds in the folder that the environment variable
ONTOGENY_PORCUPINE names.
"""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fault_checks import CHECKER, build_checker

STEP = 1000  # nanoseconds between two operations of the sequential execution


@pytest.fixture(scope="module")
def checker(tmp_path_factory) -> Path:
    """The program."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    folder = tmp_path_factory.mktemp("checker")
    porcupine = os.environ.get("ONTOGENY_PORCUPINE")
    if porcupine is None:
        program = build_checker(folder)
        if isinstance(program, str):
            pytest.skip(f"the module Porcupine is not available: {program[:200]}")
        return program
    (folder / "go.work").write_text(f"go 1.19\nuse (\n\t{CHECKER}\n\t{porcupine}\n)\n")
    variables = os.environ | {"GOWORK": str(folder / "go.work"), "GOFLAGS": ""}
    subprocess.run(["go", "build", "-o", str(folder / "checker"), "."], cwd=CHECKER, env=variables, check=True)
    return folder / "checker"


class Branch:
    """A sequential execution of random operations on a branch, which is linearizable by construction."""

    def __init__(self, seed: int, role: str) -> None:
        self.draw, self.role = random.Random(seed), role
        self.examples: list[str] = []
        self.restored: list[int] = []
        self.number = self.version = self.newest = self.pending = 0
        self.operations: list[dict[str, Any]] = []

    def run(self, num_operations: int) -> None:
        kinds = ["teach"] * 3 + ["learn"] * 3 + ["read", "ask", "list"] * 2
        kinds += {"learner": [], "restorer": ["rollback", "restore"], "eraser": ["erase"]}[self.role]
        for _ in range(num_operations):
            getattr(self, self.draw.choice(kinds))()
        self.list(10**6)
        self.add("versions", {"restored": self.restored})

    def add(self, kind: str, answer: dict[str, Any] | None, status: int = 200, **arguments: Any) -> None:
        time = STEP * (len(self.operations) + 1)
        start, end = (time - self.draw.randrange(3 * STEP), time + self.draw.randrange(3 * STEP))  # they overlap
        self.operations.append({
            "client": 0, "key": "key", "role": self.role, "operation": kind, "arguments": arguments, "answer": answer,
            "status": status, "start": start, "end": end, "processes": ["0"],
        })  # fmt: skip

    def learn(self) -> None:
        if self.pending:
            self.pending -= 1
            self.newest += 1
            self.version = self.newest

    def teach(self) -> None:
        self.number += self.draw.randrange(1, 4)
        self.examples.append(f"text {self.number}")
        self.pending += 1
        self.add("teach", {"number": self.number}, text=self.examples[-1])

    def read(self) -> None:
        self.add("read", {"version": self.version, "pending": self.pending})

    def ask(self) -> None:
        self.add("ask", {"version": self.version})

    def list(self, limit: int = 5) -> None:
        self.add("list", {"texts": self.examples[::-1][:limit]}, limit=limit)

    def rollback(self) -> None:
        self.version, self.pending = self.draw.randrange(self.newest + 1), 0
        self.add("rollback", {"version": self.version}, version=self.version)

    def restore(self) -> None:
        self.newest, self.pending = self.newest + 1, 0
        self.version = self.newest
        self.restored.append(self.version)
        self.add("restore", {"version": self.version})

    def erase(self) -> None:
        if self.examples:
            text = self.draw.choice(self.examples)
            self.examples.remove(text)
            self.add("erase", {"number": 1}, text=text)


def lose_answers(branch: Branch) -> None:
    """Makes the outcome of some operations that change something unknown, whether or not they took effect."""
    for operation in list(branch.operations):
        if operation["operation"] in ("teach", "rollback", "restore", "erase") and branch.draw.random() < 0.1:
            operation |= {"answer": None, "status": None, "end": None}
        elif operation["operation"] == "restore" and branch.draw.random() < 0.5:  # an upload that never arrived
            branch.operations.append(operation | {"answer": None, "status": None, "end": None})


def check(checker: Path, folder: Path, operations: list[dict[str, Any]]) -> int:
    """The exit code of the program."""
    path = folder / "history.jsonl"
    path.write_text("".join(f"{json.dumps(operation)}\n" for operation in operations))
    return subprocess.run([str(checker), str(path)], capture_output=True, timeout=60).returncode


@pytest.mark.parametrize("role", ["learner", "restorer", "eraser"])
@pytest.mark.parametrize("is_lossy", [False, True])
def test_histories_that_are_linearizable_pass(checker, tmp_path, role, is_lossy):
    for seed in range(10):
        branch = Branch(seed, role)
        branch.run(120)
        if is_lossy:
            lose_answers(branch)
        branch.draw.shuffle(branch.operations[:-1])
        assert check(checker, tmp_path, branch.operations) == 0, seed


def stale_read(branch: Branch) -> None:
    """A former owner answers from old weights."""
    branch.add("read", {"version": branch.version - 1, "pending": branch.pending})


def lost_write(branch: Branch) -> None:
    """An acknowledged example is not in the journal."""
    branch.add("teach", {"number": branch.number + 1}, text="lost")


def repeated_number(branch: Branch) -> None:
    """Two examples have one number."""
    branch.examples.append("twice")
    branch.add("teach", {"number": branch.number}, text="twice")


def double_write(branch: Branch) -> None:
    """One example is in the journal twice."""
    branch.examples.append(branch.examples[-1])


def lost_version(branch: Branch) -> None:
    """More versions than examples."""
    branch.add("ask", {"version": branch.newest + branch.pending + 1})


def unfinished_erasure(branch: Branch) -> None:
    """An acknowledged erasure had no effect."""
    branch.add("erase", {"number": 1}, text=branch.examples[-1])


@pytest.mark.parametrize(
    "violate", [stale_read, lost_write, repeated_number, double_write, lost_version, unfinished_erasure]
)
def test_planted_violations_are_detected(checker, tmp_path, violate):
    for seed in range(10):
        branch = Branch(seed, "learner")
        branch.run(60)
        branch.teach()
        branch.learn()
        for _ in range(5):  # so that the last operations before the violation have ended
            branch.ask()
        violate(branch)
        for _ in range(5):
            branch.ask()
        branch.list(10**6)
        assert check(checker, tmp_path, branch.operations) == 1, seed
