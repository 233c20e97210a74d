"""The command line: help with examples that parse, and one sentence with exit code 2 for errors of the user."""

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

import jax
import numpy as np
import pytest
import typer

from ontogeny import cli, plugins, rng, seeds
from ontogeny.cli import shared
from ontogeny.cli.commands import COMMANDS
from ontogeny.errors import BadInput
from ontogeny.lm.config import TrainConfig
from ontogeny.server.config import ServerConfig

SMALL = ["--env", "bandit:num_arms=2,num_pulls=5", "--development", "single_lifetime:num_lifetimes=2"]


def is_one_sentence(complaint: str) -> bool:
    return complaint.startswith("ontogeny: ") and complaint.count("\n") == 1 and "Traceback" not in complaint


def test_help_names_every_command_and_needs_no_arguments(call_cli):
    code, output, _ = call_cli("--help")
    assert code == 0 and all(re.search(rf"^  {name} ", output, re.MULTILINE) for name in COMMANDS)
    assert call_cli()[:2] == (0, output)
    assert call_cli("--version")[:2] == (0, "0.1.0\n")


def leaf_commands(entries=COMMANDS, words=()) -> list[tuple[str, ...]]:
    """The words of all commands that are no groups."""
    leaves = []
    for name, entry in entries.items():
        if name:
            leaves += [(*words, name)] if isinstance(entry, str) else leaf_commands(entry, (*words, name))
    return leaves


def find_command(words: tuple[str, ...]):
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    return command


@pytest.mark.parametrize("words", leaf_commands(), ids=" ".join)
def test_every_command_has_an_example_that_parses(call_cli, words):
    code, output, _ = call_cli(*words, "--help")
    assert code == 0 and "Example" in output
    command = find_command(words)
    examples = re.sub(r"^Examples?: ", "", command.help.split("\n\n")[-1].replace("\n", " "))
    for example in examples.split("; "):
        program, *rest = shlex.split(example)
        assert program == "ontogeny" and tuple(rest[: len(words)]) == words
        command.make_context(words[-1], rest[len(words) :])


@pytest.mark.parametrize("words", leaf_commands(), ids=" ".join)
def test_every_option_has_a_help_text_that_is_a_phrase(words):
    for parameter in find_command(words).params:
        text = getattr(parameter, "help", None)
        assert parameter.name == "help" or (text and text[0].isupper() and text.endswith(".")), (parameter.name, text)
        pattern = r"(As|Of|In place|By default|Whether|Whose|What|Only|Such|The most)\b"
        assert not re.match(pattern, text or ""), (parameter.name, text)


@pytest.mark.parametrize(("words", "config"), [(("lm", "train"), TrainConfig), (("serve",), ServerConfig)])
def test_every_setting_of_a_config_is_an_option_with_its_default(words, config):
    options = {parameter.name: parameter for parameter in find_command(words).params}
    assert config.model_fields.keys() <= options.keys()
    for name, field in config.model_fields.items():
        assert (options[name].default or None) == (field.default or None), name


def test_shell_completion_completes_commands_and_options():
    for words, expected in (
        ("ontogeny ev", "evaluate"),
        ("ontogeny lm ", "generate"),
        ("ontogeny train --ag", "--agent"),
    ):
        environment = os.environ | {
            "_ONTOGENY_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run([sys.executable, "-m", "ontogeny"], env=environment, capture_output=True, text=True)
        assert expected in done.stdout.split(), (words, done)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["list"], ["list", "agents"], ["--version"]])
def test_help_and_list_import_no_heavy_library(arguments):
    heavy = {"jax", "numpy", "scipy", "matplotlib", "gymnax", "gymnasium"}
    if arguments == ["--help"]:
        heavy.add("pydantic")  # which typer imports to parse the options of a command
    program = (
        "import sys; from ontogeny import cli\n"
        f"sys.argv = ['ontogeny', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        f"assert not {heavy!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_list_shows_every_plugin_and_its_settings(call_cli):
    _, output, _ = call_cli("list")
    for kind in plugins.PLUGIN_KINDS:
        for name in plugins.list_names(kind):
            assert f"  {name} " in output and plugins.help_line(kind, name) in output
    lines = call_cli("list", "environments", "bandit")[1].splitlines()
    assert lines[0].startswith("Bernoulli bandit") and lines[-2].split() == ["num_arms=5", "Arms,", "at", "least", "2."]
    assert "no settings" in call_cli("list", "agents", "random")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "'lst'"),
        (["keys"], "'ontogeny keys' needs a command: create, list, limit, revoke; see 'ontogeny keys --help'"),
        (["audit", "runs/x", "--num-lifetimes", "9"], "use `ontogeny audit agent runs/x`"),
        (["audit", "--seed", "3", "runs/x"], "use `ontogeny audit agent RUN`"),
        (["audit", "behavour", "x.csv"], "Did you mean 'behavior'?"),
        (["lm", "train", "x", "--bogus"], "see 'ontogeny lm train --help'"),
        (
            ["lm", "train", "x", "--out", "o", "--num-steps", "99999999999999999999"],
            "'num_steps' in [lm train] must be",
        ),
        (["lm", "train", "x", "--out", "o", "--max-gradient-norm", "inf"], "must be a finite number, not inf"),
        (["train", "--agent", "random", "--env", "bandit:num_arms", "--out", "x"], "[options]: 'num_arms' in 'bandit:"),
        (["train", "--sed", "3"], "--seed"),
        (["train", "--agent", "random"], "--env"),
        (["train", "--agent", "randm", "--env", "bandit", "--out", "x"], "no agent 'randm'; did you mean random?"),
        (["train", "--agent", "random", "--env", "bandt", "--out", "x"], "no environment 'bandt'; did you mean bandit"),
        (
            ["train", "--agent", "random", "--env", "bandit:arm=3", "--out", "x"],
            "no setting 'arm'; did you mean num_arms?",
        ),
        (["train", "--agent", "random", "--env", "bandit:arms", "--out", "x"], "is not of the form setting=value\n"),
        (
            ["evaluate", "--agent", "random", "--env", "gym:CartPole-v1"],
            "only these environments take an ID: craftax, envelope, gymnasium, gymnax, xminigrid",
        ),
        (["train", "--agent", "random", *SMALL, "--drive", "payot=1", "--out", "x"], "did you mean payout?"),
        (["train", "--agent", "random", *SMALL, "--drive", "payout", "--out", "x"], "not of the form feature=weight"),
        (
            ["train", "--agent", "random", *SMALL, "--seed", "-1", "--out", "x"],
            "--seed must be a whole number from 0 to 4294967295, not -1",
        ),
        (["train", "--agent", "./mine.py", "--env", "bandit", "--out", "x"], "there is no file './mine.py'"),
        (["evaluate"], "name either a run or an --agent"),
        (["evaluate", "x", "--agent", "random"], "name either a run or an --agent"),
        (["evaluate", "--agent", "random"], "name it with --env"),
        (["evaluate", "x"], "there is no run in 'x'"),
        (["evaluate", "--agent", "random", "--env", "bandit", "--num-tasks", "1"], "at least 2 tasks"),
        (["evaluate", "--agent", "random", "--env", "bandit", "--num-tasks", "99999999999"], "has at most"),
        (
            ["evaluate", "--agent", "random", "--env", "bandit", "--seed", "-1"],
            "--seed must be a whole number from 0 to 4294967295, not -1",
        ),
        (["train", "--agent", "random", *SMALL, "--checkpoint-interval", "-1", "--out", "x"], "at least 0, not -1.0"),
        (["train", "--agent", "random", *SMALL, "--checkpoint-interval", "nan", "--out", "x"], "at least 0, not nan"),
        (
            ["train", "--agent", "random", "--env", "bandit:num_arms=2,num_arms=3", "--out", "x"],
            "the setting 'num_arms' twice",
        ),
        (["train", "--agent", "random", "--env", "bandit:num_arms=9999999999", "--out", "x"], "must not be beyond"),
        (
            ["train", "--agent", "random", "--env", "two_step:common_probability=1e999", "--out", "x"],
            "must be finite, not inf",
        ),
        (["train", "--agent", "random", *SMALL, "--drive", "payout=1e999", "--out", "x"], "must be finite, not inf"),
        (
            ["train", "--agent", "random", *SMALL, "--drive", "payout=1", "--drive", "payout=2", "--out", "x"],
            "name the same outcome feature",
        ),
        (["evaluate", "--agent", "random", "--env", "bandit", "--device", "tpv"], "no device 'tpv'"),
        (["deploy", "x"], "there is no run in 'x'"),
        (["list", "enviroments"], "no kind of plugin 'enviroments'; did you mean environments or"),
        (["list", "environments", "bandt"], "no environment 'bandt'; did you mean bandit"),
    ],
)
def test_bad_input_is_reported_in_one_sentence_with_exit_code_2(call_cli, arguments, message):
    code, output, complaint = call_cli(*arguments)
    assert code == 2 and output == "" and message in complaint and is_one_sentence(complaint)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("words", [w for w in leaf_commands() if any(p.name == "seed" for p in find_command(w).params)])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_out_of_its_range_is_refused_by_every_command_that_takes_one(call_cli, words, seed):
    arguments = {"RUN": "x", "SPEC": "x.toml", "CSV": "x.csv", "PREDICTOR": "predictor:uniform", "TEXT": "x.txt"}
    needed = [p for p in find_command(words).params if p.param_type_name == "argument" or p.required]
    values = []
    for parameter in needed:
        if parameter.param_type_name == "argument":
            values.append(arguments.get((parameter.metavar or parameter.name).upper(), "x"))
        else:
            values += [parameter.opts[0], "bandit" if parameter.opts[0] == "--env" else "x"]
    code, output, complaint = call_cli(*words, *values, "--seed", seed)
    assert (code, output) == (2, "") and is_one_sentence(complaint), complaint
    assert f"must be a whole number from 0 to 4294967295, not {seed}" in complaint


def test_seeds_have_one_definition_in_specs_and_in_python():
    for seed in (-1, 2**32, True, 1.0, "1", None, 10**5000):
        for check in (seeds.check_seed, rng.key_from_seed, lambda seed: TrainConfig(seed=seed)):
            with pytest.raises(ValueError, match="must be a whole number from 0 to 4294967295, not"):
                check(seed)
    assert seeds.check_seed(np.int64(2**32 - 1)) == seeds.MAX_SEED == TrainConfig(seed=2**32 - 1).seed
    keys = {jax.random.key_data(rng.key_from_seed(seed)).tobytes() for seed in (0, 1, 2**31, 2**32 - 1)}
    assert len(keys) == 4


def test_main_commands_give_the_same_bytes_where_jax_is_set_to_64_bits(call_cli, monkeypatch):
    commands = (
        ["train", "--agent", "recurrent:hidden_size=2", "--env", "bandit:num_arms=2,num_pulls=5", "--development",
         "evolution:population_size=4,num_lifetimes=2,num_generations=2"],
        ["evaluate", "--agent", "thompson", "--env", "bandit:num_arms=2,num_pulls=5", "--num-tasks", "20"],
        ["check", "env", "bandit"],
    )  # fmt: skip
    report = []
    try:
        for number, setting in enumerate(("0", "1")):
            for command in commands:
                monkeypatch.setenv("JAX_ENABLE_X64", setting)
                jax.config.update("jax_enable_x64", setting == "1")
                out = ["--out", f"run{number}"] if command[0] == "train" else []
                code, output, complaint = call_cli(*command, *out)
                assert code == 0, complaint
                assert ("JAX_ENABLE_X64 is ignored" in complaint) == (setting == "1")
                report.append(re.sub(r"run\d| time .*|speed: .*", "", output))
        assert report[: len(commands)] == report[len(commands) :]
        weights = [Path(f"run{number}/genome.safetensors").read_bytes() for number in range(2)]
        assert weights[0] == weights[1]
        jax.config.update("jax_enable_x64", True)
        with pytest.raises(BadInput, match="computes in 32 bits"):
            rng.key_from_seed(0)
    finally:
        jax.config.update("jax_enable_x64", False)


def test_an_absent_gpu_is_reported(tmp_path):
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


def test_train_evaluate_and_deploy(call_cli):
    code, output, complaint = call_cli("train", "--agent", "ucb1", *SMALL, "--seed", "3", "--out", "runs/a")
    assert code == 0 and complaint == "" and output.startswith("runs/a: a genome of 0 parameters after 1 generation")
    code, output, complaint = call_cli("train", "--agent", "ucb1", *SMALL, "--seed", "3", "--out", "runs/a")
    assert code == 2 and "finished run; not overwritten" in complaint and is_one_sentence(complaint)

    code, output, complaint = call_cli("evaluate", "runs/a", "--num-tasks", "20", "--json", "--out", "score.json")
    record = json.loads(output)
    assert code == 0 and complaint == "" and record == json.loads(Path("score.json").read_text())
    assert record["num_tasks"] == 20 and record["mode"] == "frozen" and len(record["curve"]["mean"]) == 5
    assert record["interval"][0] < record["mean"] < record["interval"][1]
    code, output, complaint = call_cli("evaluate", "runs/a", "--out", "score.json")
    assert code == 2 and "'score.json' exists; not overwritten" in complaint

    command = ["evaluate", "--agent", "ucb1", "--env", "bandit:num_arms=2,num_pulls=5", "--num-tasks", "20"]
    repeated = json.loads(call_cli(*command, "--json")[1])
    assert {k: v for k, v in repeated.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    _, table, _ = call_cli(*command)
    assert "20 held out, seed 0" in table and "± " in table and "ucb1" in table

    code, output, complaint = call_cli("deploy", "runs/a", "--frozen", "--num-steps", "3", "--save", "saved")
    lines = output.splitlines()
    assert code == 0 and complaint == "" and len(lines) == 5
    assert lines[0].startswith("step 1  episode 1  observation 0  action ") and "payout" in lines[0]
    assert lines[3].startswith("the weights are the same: weights digest") and lines[4] == "saved in saved"
    assert call_cli("deploy", "saved", "--online", "--num-steps", "2")[0] == 0
    code, _, complaint = call_cli("deploy", "runs/a", "--save", "saved")
    assert code == 2 and "'saved' exists; not overwritten" in complaint

    next(Path("runs/a").glob("genome.safetensors")).write_bytes(b"damaged")
    code, _, complaint = call_cli("evaluate", "runs/a")
    assert code == 2 and "genome.safetensors' is damaged" in complaint and is_one_sentence(complaint)


def test_a_frozen_evaluation_of_a_learner_prints_a_note(call_cli):
    counting = str(Path(__file__).parent / "plugins" / "counting.py")
    command = ["evaluate", "--agent", counting, "--env", "bandit:num_arms=2,num_pulls=5", "--num-tasks", "4", "--json"]
    assert "--online lets them learn" in call_cli(*command)[2]
    code, output, complaint = call_cli(*command, "--online")
    assert code == 0 and "lets them learn" not in complaint and json.loads(output)["mode"] == "online"


def test_an_evaluation_of_an_untrained_genome_prints_a_note(call_cli):
    command = ["evaluate", "--env", "bandit:num_pulls=3", "--num-tasks", "4", "--agent"]
    assert "has its random initial values; `ontogeny train`" in call_cli(*command, "recurrent:hidden_size=2")[2]
    assert call_cli(*command, "ucb1")[2] == ""  # no genome


def test_a_table_in_a_pipe_is_not_cut_at_the_width_of_a_terminal(tmp_path):
    command = [sys.executable, "-m", "ontogeny", "evaluate", "--agent", "recurrent", "--env", "bandit:num_pulls=3"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run([*command, "--num-tasks", "4"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    first_line = done.stdout.splitlines()[0]
    assert "recurrent:hidden_size=48,update_gate_bias=2.0,input_scale=3.0,stochastic=False" in first_line


@pytest.mark.parametrize("words", [(), *[(name,) for name in COMMANDS], *leaf_commands()], ids=" ".join)
def test_a_wrong_option_names_the_help_of_its_command(call_cli, words):
    code, _, complaint = call_cli(*words, "--no-such-option")
    assert code == 2 and is_one_sentence(complaint)
    assert f"see '{' '.join(('ontogeny', *words))} --help'" in complaint or words == ("audit",)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processors_with_num_host_devices(tmp_path):
    arguments = ["train", "--agent", "recurrent:hidden_size=24", "--env", "bandit", "--num-host-devices", "2"]
    arguments += ["--development", "evolution:population_size=8,num_lifetimes=4,num_generations=2", "--out"]

    def train_on(processors):
        code = f"import os, runpy; os.sched_setaffinity(0, {processors}); "
        code += "runpy.run_module('ontogeny', run_name='__main__', alter_sys=True)"
        command = [sys.executable, "-c", code, *arguments, str(tmp_path / str(len(processors)))]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("genome digest ")[2]

    every = os.sched_getaffinity(0)
    assert train_on(every) == train_on({min(every)})


@pytest.mark.parametrize(
    "command", ["audit behavior x", "audit prequential x", "check agent x", "check env x", "serve x", "audit agent x"]
)
def test_commands_that_compute_take_a_number_of_host_devices(call_cli, command):
    code, _, complaint = call_cli(*command.split(), "--num-host-devices", "10000")
    assert code == 2 and "'--num-host-devices'" in complaint and "64" in complaint


def test_a_plugin_in_place_of_its_kind_is_named_with_its_kind(call_cli):
    code, _, complaint = call_cli("list", "bandit")
    assert code == 2 and "'ontogeny list environments bandit' lists its settings" in complaint
    code, _, complaint = call_cli("list", "environment")
    assert code == 2 and "did you mean environments" in complaint


@pytest.mark.parametrize("option", ["--arms", "--na-values"])
@pytest.mark.parametrize("value", [",", "a,,b", ""])
def test_empty_values_in_a_list_of_labels_are_refused(call_cli, option, value):
    code, _, complaint = call_cli("audit", "behavior", "choices.csv", option, value)
    assert code == 2 and f"in '{value}' one of them is empty" in complaint


def test_more_host_devices_than_can_be_compiled_for_are_refused(call_cli):
    command = ("evaluate", "--agent", "random", "--env", "bandit", "--num-host-devices", "10000")
    code, _, complaint = call_cli(*command)
    assert code == 2 and is_one_sentence(complaint) and "--num-host-devices" in complaint


def test_study_and_report_pass_their_arguments_on(call_cli, monkeypatch):
    from ontogeny import studies
    from ontogeny.runs import kinds

    calls = []
    monkeypatch.setattr(studies, "run", lambda *arguments, **options: calls.append((*arguments, options)))
    monkeypatch.setattr(studies, "merge_parts", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(kinds, "write_page", lambda folder: folder / "report.html")
    Path("sweep.toml").write_text("sweep = {}", encoding="utf-8")
    options = {"part": None, "on": "in_process"}
    for arguments, call in [
        (("mine.toml", "--out", "there", "--seed", "4"), (Path("mine.toml"), Path("there"), 4, "", options)),
        ((), (None, None, None, "", options)),
        (("merge", "all", "1", "2"), (Path("all"), [Path("1"), Path("2")])),
        (("sweep.toml", "--on", "in_process"), (Path("sweep.toml"), None, None, "", options)),
    ]:
        assert call_cli("study", *arguments)[0] == 0
        assert calls.pop() == call
    for path in ("there", "there/report.html"):
        assert call_cli("report", path)[:2] == (0, "wrote there/report.html\n")


def test_errors_of_the_operating_system_are_reported(call_cli):
    Path("file").write_text("")
    code, _, complaint = call_cli("train", "--agent", "random", *SMALL, "--out", "file/run")
    assert code == 2 and is_one_sentence(complaint) and "Not a directory" in complaint


def test_a_full_disk_is_reported_in_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        return
    command = [sys.executable, "-m", "ontogeny", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == "ontogeny: No space left on device\n"


def test_a_terminal_without_some_characters_shows_the_others(tmp_path):
    command = [sys.executable, "-m", "ontogeny", "evaluate", "--agent", "random", "--env", "bandit:num_pulls=3"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--num-tasks", "4"], capture_output=True, text=True, cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0 and "4 held out, seed 0" in done.stdout, done.stderr


def test_insufficient_memory_is_reported_in_one_sentence(call_cli, monkeypatch):
    from ontogeny.stages import evaluate

    def greedy(*arguments, **keywords):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 48000001988 bytes.")

    monkeypatch.setattr(evaluate, "evaluate", greedy)
    code, _, complaint = call_cli("evaluate", "--agent", "random", "--env", "bandit", "--num-tasks", "4")
    assert code == 2 and "not enough memory" in complaint and is_one_sentence(complaint)


def test_a_dangling_symbolic_link_is_not_overwritten(call_cli):
    Path("link").symlink_to("elsewhere")
    same = ["evaluate", "--agent", "random", "--env", "bandit:num_pulls=3", "--num-tasks", "4"]
    code, _, complaint = call_cli(*same, "--out", "link")
    assert code == 2 and "'link' exists; not overwritten" in complaint and Path("link").is_symlink()


@pytest.mark.parametrize(("command", "hint"), [("study", "; rerun the same command to resume"), ("report", "")])
def test_the_message_after_an_interrupt_states_whether_the_command_can_be_resumed(call_cli, monkeypatch, command, hint):
    from ontogeny import studies
    from ontogeny.runs import kinds

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "run", interrupted)
    monkeypatch.setattr(kinds, "write_page", interrupted)
    assert call_cli(command, "there") == (130, "", f"ontogeny: stopped{hint}\n")


def test_progress_without_a_terminal_is_a_line_with_the_remaining_time_now_and_then(capsys, monkeypatch):
    with shared.progress("training") as update:
        update(1, 2, "half of it")
    assert capsys.readouterr() == ("", "")
    times = iter([0.0, 100.0, 105.0, 110.0])  # compilation takes 100 s, each further pass 10 s
    monkeypatch.setattr(shared.time, "monotonic", lambda: next(times))
    with shared.progress("certifying", "passes") as update:
        update(1, 4, "causal")
        update(1, 4, "too early for a line")
        update(2, 4, "causal")
    output = capsys.readouterr()
    lines = ["certifying: 1 of 4 passes, causal", "certifying: 2 of 4 passes, causal, about 20 s left"]
    assert output.out == "" and output.err.splitlines() == lines


def test_numbers_drives_and_curves_are_formatted_and_parsed():
    formatted = {0.0: "0", 1.0: "1", 78.40123: "78.4", 1913.72: "1,913.7", -0.05: "-0.05"}
    assert {value: shared.format_number(value) for value in formatted} == formatted and shared.format_number(
        None
    ) == "not finite"
    with pytest.raises(BadInput):
        shared.parse_drive("food=much")
    assert shared.format_number(1e38) == "1e+38" and shared.format_number(-123456789.0) == "-123,456,789.0"
    assert shared.parse_drive("food=2") == ("food", 2.0)
    assert shared.sparkline([0.0, 1.0, 2.0]) == "0 ▁▅█ 2" and shared.sparkline([1.0]) == "1 ▁ 1"


@pytest.mark.parametrize(
    ("text", "message"),
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
def test_an_error_in_a_users_plugin_file_is_reported_in_one_sentence(call_cli, text, message):
    Path("own.py").write_text(text, encoding="utf-8")
    code, _, complaint = call_cli("evaluate", "--agent", "own.py", "--env", "bandit", "--num-tasks", "4")
    assert code == 2 and message in complaint and is_one_sentence(complaint), complaint
    Path("own.py").write_bytes(b"\xff\xfe")
    for command in (["evaluate", "--agent", "own.py", "--env", "bandit"], ["list", "agents", "own.py"]):
        code, _, complaint = call_cli(*command)
        assert code == 2 and is_one_sentence(complaint) and "own.py" in complaint


@pytest.mark.parametrize("changed", ["reset=lambda key: 1 / 0", "step=lambda *arguments: 'text'"])
def test_an_error_in_a_checked_environment_is_reported_in_one_sentence(call_cli, changed):
    text = "from ontogeny import make_env\n\n\ndef build():\n    return make_env('bandit')._replace(%s)\n"
    Path("own.py").write_text(text % changed, encoding="utf-8")
    for command in (["check", "env", "own.py"], ["check", "agent", "random", "--env", "own.py"]):
        code, _, complaint = call_cli(*command)
        assert code == 2 and is_one_sentence(complaint) and "own.py'" in complaint, complaint


def test_an_agent_that_violates_its_contract_is_named(call_cli):
    violator = str(Path(__file__).parent / "plugins" / "changes_weights_in_act.py")
    for command in (
        ["evaluate", "--agent", violator, "--env", "bandit", "--num-tasks", "4"],
        ["evaluate", "--agent", violator, "--env", "bandit", "--num-tasks", "4", "--online"],
        ["train", "--agent", violator, *SMALL, "--out", "run"],
        ["check", "agent", violator],
    ):
        code, _, complaint = call_cli(*command)
        assert code == 2 and is_one_sentence(complaint)
        assert "changes_weights_in_act.py', `act` changed weights" in complaint
        assert "may change activations only" in complaint
    assert not Path("run").exists()


def test_a_run_holds_copies_of_the_files_of_the_user(call_cli):
    original = Path(__file__).parent / "plugins" / "counting.py"
    Path("own.py").write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
    command = ["train", "--agent", "own.py", *SMALL, "--out", "run"]
    assert call_cli(*command)[0] == 0
    score = json.loads(call_cli("evaluate", "run", "--num-tasks", "8", "--online", "--json")[1])["mean"]
    assert call_cli("deploy", "run", "--online", "--num-steps", "2", "--save", "saved")[0] == 0
    Path("own.py").write_text("raise RuntimeError('edited since')", encoding="utf-8")
    Path("away").mkdir()
    for folder in ("run", "saved"):
        Path(folder).rename(Path("away") / folder)
    score_after_move = json.loads(call_cli("evaluate", "away/run", "--num-tasks", "8", "--online", "--json")[1])["mean"]
    assert score_after_move == score and call_cli("deploy", "away/saved", "--num-steps", "2")[0] == 0
    next(Path("away/run/files").rglob("own.py")).write_text("# changed", encoding="utf-8")
    code, _, complaint = call_cli("evaluate", "away/run")
    assert code == 2 and "not the file with which the run began" in complaint and is_one_sentence(complaint)


def test_a_run_is_not_resumed_with_a_file_that_was_edited(call_cli):
    original = (Path(__file__).parent / "plugins" / "counting.py").read_text(encoding="utf-8")
    Path("own.py").write_text(original, encoding="utf-8")
    command = ["train", "--agent", "own.py", *SMALL, "--out", "run"]
    assert call_cli(*command)[0] == 0
    for name in ("genome.json", "genome.safetensors"):
        (Path("run") / name).unlink()  # as if it had been stopped before its end
    Path("own.py").write_text(original + "\n", encoding="utf-8")
    code, _, complaint = call_cli(*command)
    assert code == 2 and "a run of another spec" in complaint
    Path("own.py").write_text(original, encoding="utf-8")
    assert call_cli(*command)[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--agent", "random", "--env", "bandit", "--out", "nowhere/score.json"],
        ["deploy", "run", "--save", "nowhere/saved"],
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(call_cli, arguments):
    code, output, complaint = call_cli(*arguments)
    assert code == 2 and output == "" and "there is no folder 'nowhere'" in complaint and is_one_sentence(complaint)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_a_drive_must_be_finite(call_cli, weight):
    same = ["evaluate", "--agent", "random", "--env", "bandit", "--drive", f"payout={weight}"]
    code, _, complaint = call_cli(*same)
    assert code == 2 and "must be finite" in complaint and is_one_sentence(complaint)


def test_an_interrupted_run_prints_how_to_resume_it(tmp_path):
    # A suite that runs in the background has interrupts disabled for its children.
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('ontogeny', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, "train", "--agent", "recurrent_cells", "--env", "bandit"]
    command += [
        "--development",
        "evolution:population_size=4,num_lifetimes=2,num_generations=100000",
        "--out",
        "run",
        "--checkpoint-interval",
        "0",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        for _ in range(600):
            if (tmp_path / "run" / "checkpoint.json").exists():
                break
            time.sleep(0.1)
        for _ in range(8):  # again, where the first one arrived during a callback
            started.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(timeout=15)
                break
        if started.poll() is None:
            started.kill()
        output, complaint = started.communicate()
    assert started.returncode == 130 and output == ""
    lines = [line for line in complaint.splitlines() if not line.startswith("note: ")]
    assert lines == ["ontogeny: stopped; rerun the same command to resume"]


def test_an_interrupt_ends_a_long_computation():
    code = """
import hashlib, signal, sys
from ontogeny import cli
def compute(): hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour in one call
def work():
    try:
        print("begins", flush=True)
        compute()
    except KeyboardInterrupt: compute()  # the interrupt came before the call
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main, sys.argv = work, ["ontogeny", "train"]
cli.program()
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as started:
        assert started.stdout.readline() == "begins\n"
        started.send_signal(signal.SIGINT)
        _, complaint = started.communicate(timeout=60)
    assert started.returncode == 130 and complaint == "ontogeny: stopped; rerun the same command to resume\n"


def test_an_interrupt_in_the_garbage_collector_ends_the_program():
    code = """
import gc, sys
from ontogeny import cli
def interrupted(*_): raise KeyboardInterrupt
def work(): gc.callbacks.append(interrupted); gc.collect(); print("ignored")
cli.main, sys.argv = work, ["ontogeny", "train"]
cli.program()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "ontogeny: stopped; rerun the same command to resume\n"
