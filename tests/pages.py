"""Reads and executes the pages of the documentation: files, commands and programs, with the output that a page shows.

In a page, a fenced block of the language `console` holds commands after `$ ` and, below each, its output; `...`
stands for omitted lines, and at the end of a line for the rest of the line. `<!-- file: NAME -->` before a block makes
it a file of the reader. Numbers may differ from those of the page.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from ontogeny import cli
from serving import ROOT, ServerProcess

README = ROOT / "README.md"
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL
)
VARIABLE = (  # what differs from run to run or from machine to machine, and what stands for it in a comparison
    (r"\bog-[\w-]+", "KEY"),
    (r"\b[0-9a-f]{8,}\b", "HEX"),
    (r"[▁-█]+", "CHART"),
    (r"[-+]?\d[\d,.:]*(?:e[-+]?\d+)?", "#"),
    (r"\s+", " "),
)


class Block(NamedTuple):
    """A fenced block, with the comment above it."""

    marker: str
    language: str
    content: str


class Command(NamedTuple):
    """A command and the lines of output that the page shows below it."""

    text: str
    output: tuple[str, ...]


def all_pages() -> list[Path]:
    """The README and the pages of the site, without the notebook, which quotes commands of its time."""
    return [README, *(page for page in sorted(DOCS.rglob("*.md")) if "lab-notebook" not in page.parts)]


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [Block(match["marker"] or "", match["language"], match["content"]) for match in BLOCK.finditer(text)]


def find_block(page: Path, marker: str) -> str:
    """The content of the one block below a comment."""
    (content,) = [block.content for block in read_blocks(page) if block.marker == marker]
    return content


def read_console(content: str) -> Iterator[Command]:
    """The commands of a block of the language `console`."""
    for part in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL)
        assert match
        yield Command(re.sub(r"\\\n\s*", "", match[1]), tuple(match[2].splitlines()))


def block_commands(page: Path) -> list[list[str]]:
    """The arguments of every `ontogeny` command in a page's blocks, without comments."""
    lines = []
    for block in read_blocks(page):
        if block.language == "console":
            lines += [command.text for command in read_console(block.content)]
        elif block.language in ("", "bash", "sh"):
            lines += block.content.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if re.match(r"ontogeny( |$)", line)]
    return [command[1:] for command in commands]


def inline_commands(page: Path) -> list[list[str]]:
    """The arguments of every `ontogeny` command within a sentence of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(match)[1:] for match in re.findall(r"`(ontogeny [^`]+)`", text)]


def find_command(arguments: list[str]):
    """Removes the names of a command from its arguments; returns the command, or a group where no command is named."""
    command = typer.main.get_command(cli.app)
    while arguments and hasattr(command, "commands") and re.match(r"[a-z]", arguments[0]):
        command = command.commands[arguments.pop(0)]
    return command


def parse_command(arguments: list[str]) -> None:
    """Raises an error if there is no such command or option, or if an argument is missing."""
    command = find_command(arguments)
    if not hasattr(command, "commands"):
        command.make_context("ontogeny", arguments)


def generalize(line: str) -> str:
    """A line of output without numbers, digests, keys and the width of columns."""
    for pattern, replacement in VARIABLE:
        line = re.sub(pattern, replacement, line)
    return line.strip()


def check_output(command: Command, output: str) -> None:
    """Checks that the output has the lines of the page, in their order."""
    lines = [generalize(line) for line in output.splitlines()]
    position, is_adjacent = 0, False
    for expected in command.output:
        if expected.strip() == "...":
            is_adjacent = False
            continue
        beginning = generalize(expected.removesuffix("..."))
        is_whole = not expected.endswith("...")
        while not (
            position < len(lines)
            and (lines[position] == beginning if is_whole else lines[position].startswith(beginning))
        ):
            assert position < len(lines) and not is_adjacent, f"`{command.text}` prints no '{expected}':\n{output}"
            position += 1
        position, is_adjacent = position + 1, True


class Reader:
    """A reader who follows a page in an empty folder, which is the working directory.

    Args:
        monkeypatch: Sets the working directory and the arguments of commands.
        capsys: Captures what commands print.
        folder: The empty folder.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        self.server: ServerProcess | None = None
        self.replacements: dict[str, str] = {}  # what a reader fills in for the placeholders of a page
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def follow(self, page: Path) -> None:
        """Does all that a page says, in its order."""
        for block in read_blocks(page):
            if block.marker.startswith("file: "):
                (self.folder / block.marker.removeprefix("file: ")).write_text(self.fill_in(block.content))
            elif block.language == "console":
                for command in read_console(block.content):
                    self.run(command)

    def fill_in(self, text: str) -> str:
        """The text with the reader's own keys, and with the address of the server."""
        for placeholder, value in self.replacements.items():
            text = text.replace(placeholder, value)
        return text

    def run(self, command: Command) -> None:
        """Runs a command and compares its output with the page's."""
        text = self.fill_in(command.text)
        program, *arguments = shlex.split(text, comments=True)
        if program != "ontogeny":
            done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            output = done.stdout
        elif arguments[0] == "serve":
            self.server = ServerProcess(self.folder / "deployments", *arguments[1:])
            self.replacements["http://127.0.0.1:8000"] = self.server.url
            output = self.server.log.read_text()
        else:
            output = self.run_in_process(*arguments)
        check_output(command, output)
        if arguments[:2] == ["keys", "create"]:
            name, key = arguments[arguments.index("--name") + 1].upper(), output.split()[-1]
            self.replacements |= {f"KEY_OF_{name}": key, f"ID_OF_{name}": key.split("-")[1]}

    def run_in_process(self, *arguments: str) -> str:
        """Runs `ontogeny` in this process, which saves the import of its libraries; returns what it prints."""
        self.monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = self.capsys.readouterr()
        assert end.value.code == 0, captured.err
        return captured.out

    def close(self) -> None:
        """Stops the server."""
        if self.server is not None:
            self.server.stop()
