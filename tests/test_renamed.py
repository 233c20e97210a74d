"""Every old name is answered with the new one; none works."""

import sys

import pytest

from ontogeny import cli
from ontogeny.renamed import TABLES, renamed_hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--world", "bandit"], "`--world` was renamed `--env`."),
        (["train", "--every", "1"], "`--every` was renamed `--checkpoint-interval`."),
        (["evaluate", "x", "--tasks", "10"], "`--tasks` was renamed `--num-tasks`."),
        (["deploy", "x", "--steps", "10"], "`--steps` was renamed `--num-steps`."),
        (["generate", "x"], "`generate` was renamed `lm generate`."),
        (["export", "x"], "`export` was renamed `lm export`."),
        (["train", "text", "x"], "`train text` was renamed `lm train`."),
        (["audit", "behaviour", "x"], "`audit behaviour` was renamed `audit behavior`."),
        (["evaluate", "x", "--text", "x"], "`evaluate --text` was renamed `lm evaluate --text`."),
        (["evaluate", "--despite-overlap"], "`evaluate --despite-overlap` was renamed `lm evaluate --allow-overlap`."),
        (
            ["audit", "prequential", "--tokens", "9"],
            "`audit prequential --tokens` was renamed `audit prequential --num-tokens`.",
        ),
        (["list", "worlds"], "`worlds` was renamed `environments`."),
    ],
)
def test_an_old_command_or_option_is_answered_with_the_new_one(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    output, complaint = capsys.readouterr()
    assert end.value.code == 2 and output == ""
    assert complaint.startswith(f"ontogeny: {message}") and complaint.count("\n") == 1


def test_no_new_name_is_an_old_one():
    for kind, table in TABLES.items():
        for old, new in table.items():
            assert renamed_hint(kind, old) == f"`{old}` was renamed `{new}`."
            assert renamed_hint(kind, new) is None, f"{kind} {new}"
    assert renamed_hint("option", "--env") is None
