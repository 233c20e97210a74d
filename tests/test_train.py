"""Agent runs are determined by spec and seed, can be resumed after any kill, and are never overwritten."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ontogeny.development.base import require_finite_search
from ontogeny.errors import BadInput, LearningDiverged
from ontogeny.runs import folder as run_folder
from ontogeny.stages.spec import complete_spec, parse_run_spec, spec_to_json
from ontogeny.stages.train import train

DATA = {
    "env": "bandit:num_arms=2,num_pulls=5",
    "agent": "random",
    "development": "single_lifetime:num_lifetimes=4,num_generations=5",
}
SPEC = parse_run_spec(DATA)
BYTES = ("spec.json", "records.jsonl", "genome.json", "genome.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    """Bit for bit: spec, records and genome."""
    for name in BYTES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), f"{name} differs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(SPEC, tmp_path_factory.mktemp("runs") / "finished")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_hold_one_line_per_generation_and_no_wall_times(finished):
    records = lines(finished / "records.jsonl")
    assert [record["generation"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["env_steps"] for record in records] == [20, 40, 60, 80, 100]
    assert all(set(record) == {"generation", "env_steps", "fitness", "fitness_std"} for record in records)
    assert [timing["compiled_call"] for timing in lines(finished / "timing.jsonl")] == [1, 2, 3, 4, 5]


def test_the_same_spec_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    assert_same_run(finished, train(SPEC, tmp_path / "repeated", checkpoint_interval=0))
    reseeded = train(SPEC.model_copy(update={"seed": 1}), tmp_path / "other")
    assert (reseeded / "records.jsonl").read_bytes() != (finished / "records.jsonl").read_bytes()


def test_default_settings_are_written_out(finished):
    spec = json.loads((finished / "spec.json").read_text())["spec"]
    assert spec["development"]["settings"] == {"num_lifetimes": 4, "num_generations": 5}
    assert spec["env"]["settings"] == {"num_arms": 2, "num_pulls": 5}
    assert parse_run_spec(spec) == complete_spec(SPEC) and spec_to_json(parse_run_spec(spec)) == spec


class Killed(Exception):
    """Stands for a kill."""


def interrupted(out: Path, after: int, checkpoint_interval: float = 0.0) -> Path:
    def on_progress(num_done, total, record):
        if num_done == after:
            raise Killed

    with pytest.raises(Killed):
        train(SPEC, out, on_progress=on_progress, checkpoint_interval=checkpoint_interval)
    return out


@pytest.mark.parametrize(("after", "checkpoint_interval"), [(3, 0.0), (5, 0.0), (3, 1e9)])
def test_an_interrupted_run_is_resumed_with_bitwise_equal_results(finished, tmp_path, after, checkpoint_interval):
    out = interrupted(tmp_path / "run", after, checkpoint_interval)
    with (out / "records.jsonl").open("a") as file:
        file.write('{"generation": 4, "env_st')  # what a kill may leave behind a checkpoint
    with (out / "timing.jsonl").open("ab") as file:
        file.write(b'{"compiled_call": 4\n\xff\xfe\n')
    assert_same_run(finished, train(SPEC, out))
    assert [timing["compiled_call"] for timing in lines(out / "timing.jsonl")] == [1, 2, 3, 4, 5]


def test_a_run_killed_while_its_folder_is_set_up_is_resumed(tmp_path, monkeypatch):
    spec, out = (
        parse_run_spec(DATA | {"agent": str(Path(__file__).parent / "plugins" / "counting.py")}),
        tmp_path / "run",
    )
    out.mkdir()

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_sealed_json", killed)
        with pytest.raises(Killed):
            train(spec, out)
    assert (out / "files" / "agent" / "counting.py").exists() and not (out / "spec.json").exists()
    assert (train(spec, out) / "genome.json").exists()


def test_a_finished_run_is_not_overwritten(finished):
    before = contents(finished)
    with pytest.raises(BadInput, match="holds a finished run; not overwritten"):
        train(SPEC, finished)
    assert contents(finished) == before


def test_another_spec_does_not_resume_a_run(tmp_path):
    out = interrupted(tmp_path / "run", 2)
    before = contents(out)
    with pytest.raises(BadInput, match=r"holds a run of another spec \(seed differs\); not overwritten"):
        train(SPEC.model_copy(update={"seed": 3}), out)
    assert contents(out) == before


def test_a_folder_with_other_files_stays_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds no run; not overwritten"):
        train(SPEC, tmp_path)
    with pytest.raises(BadInput, match="is not a folder; not overwritten"):
        train(SPEC, tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "randm"}, "there is no agent 'randm'; did you mean random"),
        ({"env": "bandit:arm=3"}, "environment 'bandit' has no setting 'arm'; did you mean num_arms"),
        ({"env": "bandit:num_arms=0"}, "'num_arms' must be at least 2"),
        ({"drives": {"payot": 1}}, "named 'payot'; did you mean payout"),
        ({"development": "single_lifetime:num_lifetimes=0"}, "'num_lifetimes' must be at least 1"),
    ],
)
def test_a_faulty_spec_leaves_no_folder(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        train(parse_run_spec(spec_to_json(SPEC) | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedd": 0}, r"unknown key 'sedd' in \[run\]; did you mean seed\?"),
        ({"environment": "bandit"}, r"unknown key 'environment' in \[run\]: `environment` was renamed `env`."),
        ({"env": {"nme": "bandit"}}, r"unknown key 'nme' in \[run.env\]; did you mean name"),
        ({"env": {"name": "bandit", "nme": 1}}, r"unknown key 'nme' in \[run.env\]; did you mean name\?"),
        ({"env": 3}, r"'env' in \[run\] must be a name or a table"),
        ({"seed": -1}, r"'seed' in \[run\] must be a whole number from 0 to 4294967295, not -1"),
        ({"seed": 2**32}, r"'seed' in \[run\] must be a whole number from 0 to 4294967295, not 4294967296"),
        ({"seed": True}, r"'seed' in \[run\] must be a whole number"),
        ({"drives": {"payout": "much"}}, r"'payout' in \[run.drives\] must be a number, not 'much'"),
        ({"drives": {"payout": float("nan")}}, r"'payout' in \[run.drives\] must be finite, not nan"),
        ({"drives": {"payout": 10**400}}, r"'payout' in \[run.drives\] must be finite"),
        ({"drives": []}, r"\[run.drives\] must be a table"),
    ],
)
def test_a_message_names_the_place_of_a_mistake_in_a_spec(changes, message):
    with pytest.raises(BadInput, match=message):
        parse_run_spec({"env": "bandit", "agent": "random"} | changes)
    with pytest.raises(BadInput, match=r"\[run\] lacks the key 'agent'"):
        parse_run_spec({"env": "bandit"})


def test_damaged_records_are_refused(tmp_path):
    out = interrupted(tmp_path / "run", 3)
    path = out / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"generation": 2', b'"generation": 7'))
    with pytest.raises(BadInput, match=r"records.jsonl' is damaged"):
        train(SPEC, out)


def test_a_run_is_not_resumed_with_other_library_versions(tmp_path, monkeypatch):
    out = interrupted(tmp_path / "run", 3)
    versions = run_folder.library_versions()
    monkeypatch.setattr(run_folder, "library_versions", lambda: versions | {"jax": "0.0.1"})
    with pytest.raises(BadInput, match=r"began with jax .*; with jax 0.0.1 its"):
        train(SPEC, out)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def on_progress(num_done, total, record):
        with pytest.raises(BadInput, match="another process is working"):
            train(SPEC, tmp_path / "run")

    train(SPEC, tmp_path / "run", on_progress=on_progress)


# The tests below run the real command and kill it.

EVOLUTION = "evolution:population_size=4,num_lifetimes=2,num_generations=60,generations_per_call=1"
COMMAND = ["train", "--agent", "recurrent_cells:hidden_size=2,readout_size=2", "--env", "bandit:num_arms=2,num_pulls=5"]
COMMAND += ["--checkpoint-interval", "0"]


def begin(out: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ontogeny", *COMMAND, "--development", EVOLUTION, "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(out: Path, cache: Path) -> Path:
    process = begin(out, cache)
    output, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    assert (
        re.fullmatch(r"((note: (compiled programs|predicted peak memory)|training: ).*\n)*", complaint)
        and "a genome of" in output
    )
    return out


def kill_at(process: subprocess.Popen, records: Path, size: int, delay: float) -> bool:
    """Kills with SIGKILL shortly after the records have reached a size; returns False if the process ended before."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if records.exists() and records.stat().st_size >= size:
            time.sleep(delay)
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert time.monotonic() < deadline, f"the records did not reach {size} bytes within 240 s"
    return process.returncode == -signal.SIGKILL


def kill_and_resume(undisturbed: Path, out: Path, cache: Path, num_kills: int, seed: int = 0) -> None:
    generator = random.Random(seed)
    full_size = (undisturbed / "records.jsonl").stat().st_size
    num_effective = 0
    for size in sorted(generator.uniform(0, 0.95 * full_size) for _ in range(num_kills)):
        num_effective += kill_at(begin(out, cache), out / "records.jsonl", int(size), generator.uniform(0, 0.03))
    assert num_effective >= max(1, num_kills - 1), "the run was over before it could be killed"
    assert_same_run(undisturbed, finish(out, cache))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    return finish(folder / "undisturbed", folder / "cache")


def test_a_killed_run_ends_with_bitwise_equal_results(undisturbed, tmp_path):
    """One kill; the slow test makes 20."""
    kill_and_resume(undisturbed, tmp_path / "run", undisturbed.parent / "cache", num_kills=1, seed=5)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_bitwise_equal_results(undisturbed, tmp_path):
    kill_and_resume(undisturbed, tmp_path / "run", undisturbed.parent / "cache", num_kills=20)


def test_the_comparison_of_runs_detects_a_repeated_record(undisturbed, tmp_path):
    copy = shutil.copytree(undisturbed, tmp_path / "copy")
    assert_same_run(undisturbed, copy)
    path = copy / "records.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(AssertionError, match=r"records.jsonl differs"):
        assert_same_run(undisturbed, copy)


@pytest.mark.parametrize(
    ("agent", "development"),
    [
        pytest.param(
            "recurrent:hidden_size=2",
            "evolution:population_size=4,num_lifetimes=2,num_generations=4",
            marks=pytest.mark.slow,
        ),
        ("random", "single_lifetime:num_lifetimes=2,num_generations=2"),
    ],
)
def test_a_fitness_that_is_not_finite_in_every_generation_ends_with_a_sentence(agent, development, tmp_path):
    data = {"env": "bandit:num_arms=2,num_pulls=20", "agent": agent, "development": development}
    with pytest.raises(BadInput, match=r"the fitness is not finite in \d successive generations"):
        train(data | {"drives": {"payout": 3e38}}, tmp_path / "run")
    assert not (tmp_path / "run" / "genome.json").exists()


@pytest.mark.parametrize(
    "env",
    ["bandit:num_arms=2,num_pulls=20", pytest.param("gymnasium:CartPole-v1,episodes=1", marks=pytest.mark.slow)],
)
def test_a_single_lifetime_in_which_learning_diverges_ends_with_a_sentence(env, tmp_path):
    """The rewards are finite, so only what `learn` reports shows that the lifetime is without meaning."""
    agent = str(Path(__file__).parent / "plugins" / "diverging.py")
    data = {"env": env, "agent": agent, "development": "single_lifetime:num_lifetimes=2"}
    with pytest.raises(LearningDiverged, match="its 'loss' is not finite at step 4 of the lifetime"):
        train(data, tmp_path / "run")
    assert not (tmp_path / "run" / "genome.json").exists()


def test_one_member_whose_fitness_is_not_finite_does_not_stop_evolution():
    require_finite_search({"fitness": np.array([np.nan]), "max_fitness": np.array([1.0])})
    with pytest.raises(BadInput, match="the loss is not finite"):
        require_finite_search({"loss": np.array([np.nan, np.inf])})
