"""The log of a server and the output of its commands, for messages, names and reasons with control characters."""

import logging
import re
import sys
import threading

import pytest

from ontogeny.printable import to_printable
from ontogeny.server import keys
from ontogeny.server.learning import journal
from ontogeny.server.logs import LogFormatter, configure_logs
from ontogeny.server.store import Store

FORGED = "\n2026-01-01 00:00:00,000 INFO ontogeny.requests: GET /v1/models 200 0.001 s"
CONTROLS = ["\r", "\x00", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\ud800"]
SECRET = "og-0a1b2c3d-" + "s3cr_t-" * 6
FIRST_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ ERROR server: ")


def format_error(message, *arguments, error=None):
    """The lines that the log holds of one message."""
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("server", logging.ERROR, "file", 1, message, arguments, info)
    return LogFormatter().format(record).split("\n")


@pytest.mark.parametrize("text", [FORGED, *CONTROLS])
def test_a_message_is_one_printable_line_of_the_log(text):
    (line,) = format_error("the name is '%s'", f"a{text}b")
    assert FIRST_LINE.match(line) and line.isprintable() and "a" in line and "b" in line


@pytest.mark.parametrize("text", [FORGED, *CONTROLS])
def test_the_message_of_an_exception_forges_no_line_of_the_log(text):
    try:
        raise ValueError(f"a{text}b")
    except ValueError as error:
        first, *continuations = format_error("a request failed", error=error)
    assert FIRST_LINE.match(first) and len(continuations) >= 4
    assert all(line.isprintable() and line.startswith("  | ") for line in continuations)


def test_a_key_never_reaches_the_log():
    for line in format_error("%s", f"GET /v1/{SECRET}/x", error=KeyError(SECRET)):
        assert "s3cr" not in line
    assert "/v1/[key]/x" in format_error(f"/v1/{SECRET}/x")[0]


def test_a_message_of_any_length_is_cut():
    assert all(len(line) < 2200 for line in format_error("a" * 100_000, error=ValueError("b" * 100_000)))


def test_the_exception_that_ends_a_thread_is_a_message_of_the_log(monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    configure_logs("warning")

    def fail():
        raise ValueError(f"a{FORGED}{SECRET}")

    thread = threading.Thread(target=fail, name="learner of story")
    thread.start()
    thread.join()
    sys.stderr.flush()
    first, *continuations = capfd.readouterr().err.strip().split("\n")
    assert "the thread 'learner of story' ended with an exception" in first
    assert continuations and all(line.startswith("  | ") and "s3cr" not in line for line in continuations)


@pytest.fixture
def state_dir(tmp_path):
    """A state folder whose names and reasons have control characters and the markup of terminals."""
    store = Store(tmp_path / "state")
    key, _ = keys.create_key(store, "anna")
    branch = journal.open_branch(store, "story", key.id, "a" * 64, "b" * 64, 1.0)
    reason = f"the text holds '{''.join(CONTROLS[:-1])}'{FORGED}"
    number = journal.add_example(store, branch.branch, key.id, "a text")
    assert number is not None and journal.reject_example(store, branch, number, None, reason)
    keys.add_usage(store, [keys.UsageRecord(key.id, "story\x1b[31m", "2026-01-01", 1, 2, 3)])
    with store.transaction():
        store.execute("UPDATE keys SET name = ?", f"[bold]anna[/bold]{reason}")
    store.close()
    return tmp_path / "state"


@pytest.mark.parametrize("command", [["keys", "list"], ["usage"], ["deployments", "log", "story"], ["keys", "revoke"]])
def test_names_and_reasons_with_control_characters_appear_as_escape_sequences(command, state_dir, call_cli):
    ids = [key.id for key in keys.list_keys(Store(state_dir))] if command[-1] == "revoke" else []
    code, output, _ = call_cli(*command, *ids, "--state-dir", str(state_dir))
    assert code == 0 and all(line.isprintable() for line in output.split("\n"))
    assert not any(line.startswith("2026-01-01 00:00:00,000") for line in output.split("\n"))
    assert command[0] != "keys" or "[bold]" in output.replace("\n", "")


@pytest.mark.parametrize("text", ["plain", "é 日本語 🐕", "back\\slash", ""])
def test_printable_text_stays_as_it_is(text):
    assert to_printable(text) == text
