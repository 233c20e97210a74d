"""The command line: help with examples, one sentence and exit code 2 for what a person can mend, nothing half."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from ontogeny import cli, plugins
from ontogeny.cli import shared, start
from ontogeny.errors import BadInput

COMMANDS = ("study", "train", "evaluate", "generate", "export", "deploy", "report", "list")
SMALL = ["--env", "bandit:num_arms=2,num_pulls=5", "--development", "single_lifetime:num_lifetimes=2"]


@pytest.fixture
def ontogeny(monkeypatch, capsys, tmp_path):
    """Calls the command in this process -> exit code, what it printed, what it complained of."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "unused"))  # JAX's own settings stay as they are
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ontogeny", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code, *capsys.readouterr()

    return call


def is_one_sentence(complaint: str) -> bool:
    return complaint.startswith("ontogeny: ") and complaint.count("\n") == 1 and "Traceback" not in complaint


def test_help_names_every_command_and_needs_no_arguments(ontogeny):
    code, printed, _ = ontogeny("--help")
    assert code == 0 and all(re.search(rf"^  {name} ", printed, re.MULTILINE) for name in COMMANDS)
    assert ontogeny()[:2] == (0, printed)
    assert ontogeny("--version")[:2] == (0, "0.1.0\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_parses(ontogeny, command):
    code, printed, _ = ontogeny(command, "--help")
    assert code == 0 and "Example" in printed
    group = typer.main.get_command(cli.app)
    found = group.commands[command]
    examples = re.sub(r"^Examples?: ", "", found.epilog).split("; ")
    for example in examples:
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("ontogeny", command)
        found.make_context(command, arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list"], ["list", "agents"], ["--version"]])
def test_help_and_list_do_not_wait_for_jax(arguments):
    program = (
        "import sys; from ontogeny import cli\n"
        f"sys.argv = ['ontogeny', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_list_shows_every_room_and_its_settings(ontogeny):
    _, printed, _ = ontogeny("list")
    for family in plugins.PLUGIN_KINDS:
        for name in plugins.list_names(family):
            assert f"  {name} " in printed and plugins.help_line(family, name) in printed
    lines = ontogeny("list", "environments", "bandit")[1].splitlines()
    assert lines[0].startswith("k Bernoulli arms") and lines[-2:] == ["  arms=5", "  pulls=100"]
    assert "no settings" in ontogeny("list", "agents", "random")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "'lst'"),
        (["train", "--sed", "3"], "--seed"),
        (["train", "--agent", "random"], "--env"),
        (["train", "--agent", "randm", "--env", "bandit", "--out", "x"], "no agent 'randm'; did you mean random?"),
        (["train", "--agent", "random", "--env", "bandt", "--out", "x"], "no environment 'bandt'; did you mean bandit"),
        (
            ["train", "--agent", "random", "--env", "bandit:arm=3", "--out", "x"],
            "no setting 'arm'; did you mean arms?",
        ),
        (["train", "--agent", "random", "--env", "bandit:arms", "--out", "x"], "is not of the form setting=value"),
        (["train", "--agent", "random", *SMALL, "--drive", "payot=1", "--out", "x"], "did you mean payout?"),
        (["train", "--agent", "random", *SMALL, "--drive", "payout", "--out", "x"], "not of the form fact=weight"),
        (
            ["train", "--agent", "random", *SMALL, "--seed", "-1", "--out", "x"],
            "'seed' in [train] must be a whole",
        ),
        (["train", "--agent", "./mine.py", "--env", "bandit", "--out", "x"], "there is no file './mine.py'"),
        (["evaluate"], "name either a run or an --agent"),
        (["evaluate", "x", "--agent", "random"], "name either a run or an --agent"),
        (["evaluate", "--agent", "random"], "name it"),
        (["evaluate", "x"], "there is no run in 'x'"),
        (["evaluate", "--agent", "random", "--env", "bandit", "--tasks", "1"], "at least 2 tasks"),
        (["evaluate", "--agent", "random", "--env", "bandit", "--tasks", "99999999999"], "has at most"),
        (["evaluate", "--agent", "random", "--env", "bandit", "--seed", "-1"], "'seed' in [evaluate] must be"),
        (["train", "--agent", "random", *SMALL, "--every", "-1", "--out", "x"], "at least 0, not -1.0"),
        (["train", "--agent", "random", *SMALL, "--every", "nan", "--out", "x"], "at least 0, not nan"),
        (["train", "--agent", "random", "--env", "bandit:num_arms=2,num_arms=3", "--out", "x"], "the setting 'num_arms' twice"),
        (["train", "--agent", "random", "--env", "bandit:num_arms=9999999999", "--out", "x"], "must not be beyond"),
        (["train", "--agent", "random", "--env", "two_step:common_probability=1e999", "--out", "x"], "must be finite, not inf"),
        (["train", "--agent", "random", *SMALL, "--drive", "payout=1e999", "--out", "x"], "must be finite, not inf"),
        (
            ["train", "--agent", "random", *SMALL, "--drive", "payout=1", "--drive", "payout=2", "--out", "x"],
            "another one names already",
        ),
        (["evaluate", "--agent", "random", "--env", "bandit", "--device", "tpv"], "no device 'tpv'"),
        (["deploy", "x"], "there is no run in 'x'"),
        (["list", "wolrds"], "no family 'wolrds'; did you mean environments?"),
        (["list", "environments", "bandt"], "no environment 'bandt'; did you mean bandit"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(ontogeny, arguments, said):
    code, printed, complaint = ontogeny(*arguments)
    assert code == 2 and printed == "" and said in complaint and is_one_sentence(complaint)
    assert list(Path.cwd().iterdir()) == []


def test_a_gpu_that_is_not_there_is_said(tmp_path):
    import jax

    if jax.default_backend() != "cpu":
        return  # there is one
    command = [
        sys.executable,
        "-m",
        "ontogeny",
        "evaluate",
        "--agent",
        "random",
        "--env",
        "bandit",
        "--device",
        "gpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and is_one_sentence(done.stderr) and "no gpu here" in done.stderr


def test_from_training_to_use(ontogeny):
    code, printed, complaint = ontogeny("train", "--agent", "ucb1", *SMALL, "--seed", "3", "--out", "runs/a")
    assert code == 0 and complaint == "" and printed.startswith("runs/a: a genome of 0 numbers after 1 generation")
    code, printed, complaint = ontogeny("train", "--agent", "ucb1", *SMALL, "--seed", "3", "--out", "runs/a")
    assert code == 2 and "finished run; not overwritten" in complaint and is_one_sentence(complaint)

    code, printed, complaint = ontogeny("evaluate", "runs/a", "--tasks", "20", "--json", "--out", "score.json")
    record = json.loads(printed)
    assert code == 0 and complaint == "" and record == json.loads(Path("score.json").read_text())
    assert record["tasks"] == 20 and record["case"] == "offline" and len(record["curve"]["mean"]) == 5
    assert record["interval"][0] < record["mean"] < record["interval"][1]
    code, printed, complaint = ontogeny("evaluate", "runs/a", "--out", "score.json")
    assert code == 2 and "'score.json' exists; not overwritten" in complaint

    same = ["evaluate", "--agent", "ucb1", "--env", "bandit:num_arms=2,num_pulls=5", "--tasks", "20"]
    again = json.loads(ontogeny(*same, "--json")[1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    _, table, _ = ontogeny(*same)
    assert "20 unseen, seed 0" in table and "± " in table and "ucb1" in table

    code, printed, complaint = ontogeny("deploy", "runs/a", "--frozen", "--steps", "3", "--save", "used")
    lines = printed.splitlines()
    assert code == 0 and complaint == "" and len(lines) == 5
    assert lines[0].startswith("step 1  episode 1  observation 0  action ") and "payout" in lines[0]
    assert lines[3].startswith("the weights are the same: weights digest") and lines[4] == "saved in used"
    assert ontogeny("deploy", "used", "--online", "--steps", "2")[0] == 0
    code, _, complaint = ontogeny("deploy", "runs/a", "--save", "used")
    assert code == 2 and "'used' exists; not overwritten" in complaint

    next(Path("runs/a").glob("genome.safetensors")).write_bytes(b"damaged")
    code, _, complaint = ontogeny("evaluate", "runs/a")
    assert code == 2 and "genome.safetensors' is damaged" in complaint and is_one_sentence(complaint)


def test_a_learner_that_is_evaluated_frozen_is_told_of(ontogeny):
    counting = str(Path(__file__).parent / "plugins" / "counting.py")
    same = ["evaluate", "--agent", counting, "--env", "bandit:num_arms=2,num_pulls=5", "--tasks", "4", "--json"]
    assert "--online lets them learn" in ontogeny(*same)[2]
    code, printed, complaint = ontogeny(*same, "--online")
    assert code == 0 and complaint == "" and json.loads(printed)["case"] == "online"


def test_study_and_report_are_called(ontogeny, monkeypatch):
    from ontogeny import studies

    called = []
    monkeypatch.setattr(studies, "run", lambda *arguments: called.append(arguments))
    monkeypatch.setattr(studies, "write_page", lambda folder: folder / "report.html")
    assert ontogeny("study", "mine.toml", "--out", "there", "--seed", "4")[0] == 0
    assert ontogeny("study")[0] == 0
    assert called == [(Path("mine.toml"), Path("there"), 4, ""), (None, None, None, "")]
    assert ontogeny("report", "there")[:2] == (0, "wrote there/report.html\n")


def test_what_the_system_refuses_is_said(ontogeny):
    Path("file").write_text("")
    code, _, complaint = ontogeny("train", "--agent", "random", *SMALL, "--out", "file/run")
    assert code == 2 and is_one_sentence(complaint) and "Not a directory" in complaint


def test_a_full_disk_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        return
    command = [sys.executable, "-m", "ontogeny", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "ontogeny: No space left on device\n"


def test_a_terminal_without_our_letters_still_shows_the_others(tmp_path):
    command = [sys.executable, "-m", "ontogeny", "evaluate", "--agent", "random", "--env", "bandit:num_pulls=3"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--tasks", "4"], capture_output=True, text=True, cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0 and "4 unseen, seed 0" in done.stdout, done.stderr


def test_too_little_memory_is_one_sentence(ontogeny, monkeypatch):
    from ontogeny.stages import evaluate

    def greedy(*arguments, **named):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 48000001988 bytes.")

    monkeypatch.setattr(evaluate, "evaluate", greedy)
    code, _, complaint = ontogeny("evaluate", "--agent", "random", "--env", "bandit", "--tasks", "4")
    assert code == 2 and "not enough memory" in complaint and is_one_sentence(complaint)


def test_a_link_to_nowhere_is_not_written_through(ontogeny):
    Path("link").symlink_to("elsewhere")
    same = ["evaluate", "--agent", "random", "--env", "bandit:num_pulls=3", "--tasks", "4"]
    code, _, complaint = ontogeny(*same, "--out", "link")
    assert code == 2 and "'link' exists; not overwritten" in complaint and Path("link").is_symlink()


@pytest.mark.parametrize(("command", "said"), [("study", "; the same command goes on from here"), ("report", "")])
def test_an_interrupt_says_whether_there_is_more_to_come(ontogeny, monkeypatch, command, said):
    from ontogeny import studies

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "run", interrupted)
    monkeypatch.setattr(studies, "write_page", interrupted)
    assert ontogeny(command, "there") == (130, "", f"ontogeny: stopped{said}\n")


def test_no_cache_where_nothing_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = start.cache_folder()
    assert folder is not None and folder.is_dir() and folder.is_relative_to(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert start.cache_folder() is None


def test_progress_is_quiet_where_there_is_no_terminal(capsys):
    with shared.progress("training") as update:
        update(1, 2, "half of it")
    assert capsys.readouterr() == ("", "")


def test_numbers_are_short():
    shown = {0.0: "0", 1.0: "1", 78.40123: "78.4", 1913.72: "1,913.7", -0.05: "-0.05"}
    assert {value: shared.short(value) for value in shown} == shown and shared.short(None) == "not finite"
    with pytest.raises(BadInput):
        shared.drive_of("food=much")
    assert shared.drive_of("food=2") == ("food", 2.0)
    assert shared.sketch([0.0, 1.0, 2.0]) == "0 ▁▅█ 2" and shared.sketch([1.0]) == "1 ▁ 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(:", "cannot be loaded: SyntaxError"),
        ("import nothing_of_that_name", "cannot be loaded in line 1: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be loaded in line 1: SystemExit: 3"),
        ("x = 1", "does not define `build`"),
        ("def build(spec, steering):\n    return 1 / 0", "`build` of the file 'own.py' failed in line 2: ZeroDivision"),
        ("def build(spec, steering):\n    pass", "must return Agent, not NoneType"),
        (
            "from types import SimpleNamespace as N\ndef build(spec, steering):\n    return N(act=1)",
            "must return Agent",
        ),
        ("build = 3", "does not define `build`"),
        ("def build(spec):\n    pass", "`build` of the file 'own.py' failed: TypeError"),
        ("def build(spec, steering, *, rate):\n    pass", "the setting 'rate' of agent 'own.py' needs a default"),
        ("\x00", "cannot be loaded"),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own_is_one_sentence(ontogeny, text, said):
    Path("own.py").write_text(text, encoding="utf-8")
    code, _, complaint = ontogeny("evaluate", "--agent", "own.py", "--env", "bandit", "--tasks", "4")
    assert code == 2 and said in complaint and is_one_sentence(complaint), complaint
    Path("own.py").write_bytes(b"\xff\xfe")
    for command in (["evaluate", "--agent", "own.py", "--env", "bandit"], ["list", "agents", "own.py"]):
        code, _, complaint = ontogeny(*command)
        assert code == 2 and is_one_sentence(complaint) and "own.py" in complaint


def test_an_agent_of_ones_own_that_breaks_a_law_is_told_so(ontogeny):
    lawless = str(Path(__file__).parent / "plugins" / "lawless.py")
    for command in (
        ["evaluate", "--agent", lawless, "--env", "bandit", "--tasks", "4"],
        ["train", "--agent", lawless, *SMALL, "--out", "run"],
        ["deploy", "run", "--save", "used"],
    ):
        code, _, complaint = ontogeny(*command)
        if command[0] == "train":
            assert code == 0
            continue
        assert code == 2 and "lawless.py': the weights changed" in complaint and is_one_sentence(complaint)
        assert "breaks the first law" in complaint
    assert not Path("used").exists()


def test_a_run_carries_its_rooms_along(ontogeny):
    original = Path(__file__).parent / "plugins" / "counting.py"
    Path("own.py").write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
    same = ["train", "--agent", "own.py", *SMALL, "--out", "run"]
    assert ontogeny(*same)[0] == 0
    score = json.loads(ontogeny("evaluate", "run", "--tasks", "8", "--online", "--json")[1])["mean"]
    assert ontogeny("deploy", "run", "--online", "--steps", "2", "--save", "used")[0] == 0
    Path("own.py").write_text("raise RuntimeError('edited since')", encoding="utf-8")
    Path("away").mkdir()
    for folder in ("run", "used"):
        Path(folder).rename(Path("away") / folder)
    found = json.loads(ontogeny("evaluate", "away/run", "--tasks", "8", "--online", "--json")[1])["mean"]
    assert found == score and ontogeny("deploy", "away/used", "--steps", "2")[0] == 0
    next(Path("away/run/rooms").rglob("own.py")).write_text("# changed", encoding="utf-8")
    code, _, complaint = ontogeny("evaluate", "away/run")
    assert code == 2 and "not the file that the run was made with" in complaint and is_one_sentence(complaint)


def test_a_run_is_not_resumed_with_a_file_that_was_edited(ontogeny):
    original = (Path(__file__).parent / "plugins" / "counting.py").read_text(encoding="utf-8")
    Path("own.py").write_text(original, encoding="utf-8")
    same = ["train", "--agent", "own.py", *SMALL, "--out", "run"]
    assert ontogeny(*same)[0] == 0
    for name in ("genome.json", "genome.safetensors"):
        (Path("run") / name).unlink()  # as if it had been stopped before its end
    Path("own.py").write_text(original + "\n", encoding="utf-8")
    code, _, complaint = ontogeny(*same)
    assert code == 2 and "a run of another spec" in complaint
    Path("own.py").write_text(original, encoding="utf-8")
    assert ontogeny(*same)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--agent", "random", "--env", "bandit", "--out", "nowhere/score.json"],
        ["deploy", "run", "--save", "nowhere/used"],
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(ontogeny, arguments):
    code, printed, complaint = ontogeny(*arguments)
    assert code == 2 and printed == "" and "there is no folder 'nowhere'" in complaint and is_one_sentence(complaint)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_a_drive_must_be_finite(ontogeny, weight):
    same = ["evaluate", "--agent", "random", "--env", "bandit", "--drive", f"payout={weight}"]
    code, _, complaint = ontogeny(*same)
    assert code == 2 and "must be finite" in complaint and is_one_sentence(complaint)


def test_an_interrupted_run_says_how_it_goes_on(tmp_path):
    # Whoever runs the suite in the background has turned interrupts off for its children.
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('ontogeny', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, "train", "--agent", "recurrent_cells", "--env", "bandit"]
    command += [
        "--development",
        "evolution:population_size=4,num_lifetimes=2,num_generations=100000",
        "--out",
        "run",
        "--every",
        "0",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        for _ in range(600):
            if (tmp_path / "run" / "checkpoint.json").exists():
                break
            time.sleep(0.1)
        for _ in range(8):  # a person presses again where the first one fell into the moment of a callback
            started.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(timeout=15)
                break
        if started.poll() is None:
            started.kill()
        printed, complaint = started.communicate()
    assert started.returncode == 130 and printed == ""
    assert complaint == "ontogeny: stopped; the same command goes on from here\n"


def test_an_interrupt_in_the_garbage_collector_is_not_swallowed():
    code = """
import gc, sys
from ontogeny import cli
def interrupted(*_): raise KeyboardInterrupt
def work(): gc.callbacks.append(interrupted); gc.collect(); print("swallowed")
cli.main, sys.argv = work, ["ontogeny", "train"]
cli.program()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "ontogeny: stopped; the same command goes on from here\n"


def test_the_command_wants_a_run_or_the_known_cases(ontogeny):
    for given in ([], ["nowhere", "--known"]):
        code, _, complaint = ontogeny("audit", "attribution", *given)
        assert code == 2 and "name a run, or ask for the known cases by --known" in complaint
