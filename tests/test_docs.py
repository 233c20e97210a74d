"""The documentation is true: its commands exist, its tutorials run as they are shown, and no command is missing."""

import os
import pkgutil
import re

import pytest
import typer

import ontogeny
from ontogeny import plugins
from ontogeny.cli.commands import COMMANDS
from pages import (
    DOCS,
    README,
    Command,
    Reader,
    all_pages,
    block_commands,
    check_output,
    find_block,
    find_command,
    generalize,
    inline_commands,
    parse_command,
    read_blocks,
    read_console,
)
from serving import ROOT

TUTORIALS = ("bandit", "own-environment-and-agent", "own-gymnasium-environment", "learn-from-users")
QUICK_TUTORIALS = ("bandit", "own-environment-and-agent")
BUILT_REFERENCE = DOCS / "_build" / "html" / "reference" / "cli.html"


@pytest.fixture
def reader(monkeypatch, capsys, tmp_path):
    reader = Reader(monkeypatch, capsys, tmp_path)
    yield reader
    reader.close()


def command_names() -> list[str]:
    """All commands, with the names of their groups."""
    names = []
    for name, entry in COMMANDS.items():
        names += [name] if isinstance(entry, str) else [f"{name} {subcommand}" for subcommand in entry if subcommand]
    return names


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page):
    for arguments in block_commands(page):
        try:
            parse_command(list(arguments))
        except (typer.TyperException, KeyError) as error:
            pytest.fail(f"`ontogeny {' '.join(arguments)}`: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_in_the_text_of_a_page_exists(page):
    """Commands in the text may lack arguments, but their names and options exist."""
    for arguments in inline_commands(page):
        command = find_command(arguments)
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        options |= {"--help", "--version", "--install-completion", "--show-completion"}
        unknown = [word for word in arguments if re.match(r"--?[a-z]", word) and word not in options]
        assert not unknown, f"`ontogeny {' '.join(arguments)}` has no {unknown}"


def test_an_option_that_does_not_exist_is_detected():
    with pytest.raises(typer.TyperException):
        parse_command(["evaluate", "runs/cells", "--world", "bandit"])
    with pytest.raises(KeyError):
        parse_command(["lm", "continue"])


def test_every_command_appears_in_the_documentation():
    used = {" ".join(arguments) for page in all_pages() for arguments in block_commands(page)}
    missing = [name for name in command_names() if not any(f"{text} ".startswith(f"{name} ") for text in used)]
    assert not missing


def test_every_command_is_in_the_generated_reference():
    directive = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert ".. typer:: ontogeny.cli.app" in directive and ":show-nested:" in directive
    if not BUILT_REFERENCE.exists():
        assert "ONTOGENY_REQUIRE_DOCS" not in os.environ, "`make docs` has not built the reference"
        return
    text = re.sub(r"<[^>]+>", "", BUILT_REFERENCE.read_text(encoding="utf-8"))
    missing = [name for name in command_names() if f"ontogeny {name}" not in " ".join(text.split())]
    assert not missing


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_object_that_a_page_names_exists(page):
    no_objects = {"lock", "sqlite", "example", "version", *plugins.PLUGIN_KINDS}  # files, fields and entry points
    for name in re.findall(r"`ontogeny\.([\w.]+)`", page.read_text(encoding="utf-8")):
        if name not in no_objects:
            pkgutil.resolve_name(f"ontogeny.{name}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_TUTORIALS else pytest.mark.slow) for name in TUTORIALS]
)
def test_a_tutorial_runs_as_written(name, reader):
    """The commands and options of all pages are checked above; `make test-slow` follows the long tutorials."""
    page = DOCS / "tutorials" / f"{name}.md"
    if "from openai" in page.read_text(encoding="utf-8"):
        pytest.importorskip("openai")
    if "gymnasium" in name:
        pytest.importorskip("gymnasium")
    reader.follow(page)


def test_the_readme_shows_what_the_tutorials_run():
    """Each command of the README, with its output, stands in a tutorial, where it is executed."""
    outputs = {}
    for name in TUTORIALS:
        for block in read_blocks(DOCS / "tutorials" / f"{name}.md"):
            if block.language == "console":
                for command in read_console(block.content):
                    outputs.setdefault(command.text, set()).update(map(generalize, command.output))
    commands = [c for block in read_blocks(README) if block.language == "console" for c in read_console(block.content)]
    assert len(commands) >= 7
    for command in commands:
        assert command.text in outputs, f"no tutorial runs `{command.text}`"
        lines = {generalize(line.removesuffix("...")) for line in command.output}
        missing = [line for line in lines if not any(text.startswith(line) for text in outputs[command.text])]
        assert not missing, f"no tutorial shows this output of `{command.text}`"


def test_the_python_example_of_the_readme_prints_what_it_shows(capsys):
    code = find_block(README, "run: quickstart")
    exec(code, {})
    expected = re.search(r"print\(.*\)  # (.*)", code)
    assert expected and generalize(capsys.readouterr().out) == generalize(expected[1])


def test_the_loop_of_a_user_runs_as_written(tmp_path, monkeypatch):
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    ontogeny.train({"agent": "thompson", "env": "bandit"}, "runs/thompson")
    page = DOCS / "how-to" / "run-in-your-own-loop.md"
    names: dict = {}
    exec(find_block(page, "run: frozen"), names)
    assert 0 <= names["action"] < 5
    exec(find_block(page, "run: gymnasium"), names)

    class Lever(gymnasium.Env):
        """Pays for action 2; every episode is one step."""

        observation_space, action_space = gymnasium.spaces.Discrete(1), gymnasium.spaces.Discrete(5)

        def reset(self, *, seed=None, options=None):
            return 0, {}

        def step(self, action):
            return 0, float(action == 2), True, False, {}

    _, total = names["run_lifetime"](names["agent"], Lever(), 40)
    assert total >= 15


def test_the_readme_is_short_and_names_the_main_commands():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    first_screen = "\n".join(lines[:30])
    assert "make study" in first_screen and "make test" in first_screen


def test_wrong_output_is_detected():
    output = "score 14.2\ntasks 500 held out\nwrote runs/a\n"
    check_output(Command("", ("score  14.33", "...", "wrote ...")), output)
    for lines in (("steps 3",), ("wrote runs/a", "score 1"), ("score 1", "wrote runs/a")):
        with pytest.raises(AssertionError, match="prints no"):
            check_output(Command("", lines), output)
