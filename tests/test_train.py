"""Training runs: determined by spec and seed, resumable after any kill, never overwritten."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions
from ontogeny.stages.spec import complete_spec, parse_run_spec, spec_to_json
from ontogeny.stages.train import train

SPEC = parse_run_spec(
    {"env": "bandit:num_arms=2,num_pulls=5", "agent": "random", "development": "single_lifetime:num_lifetimes=4,num_generations=5"}
)
BYTES = ("spec.json", "records.jsonl", "genome.json", "genome.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: spec, records and genome."""
    for name in BYTES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{name} differs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(SPEC, tmp_path_factory.mktemp("runs") / "finished")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_records_have_one_line_per_generation_and_no_wall_times(finished):
    lines = [json.loads(line) for line in (finished / "records.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["env_steps"] for line in lines] == [20, 40, 60, 80, 100]
    assert all(set(line) == {"generation", "env_steps", "fitness", "fitness_std"} for line in lines)
    timing = [json.loads(line) for line in (finished / "timing.jsonl").read_text().splitlines()]
    assert [line["dispatch"] for line in timing] == [1, 2, 3, 4, 5]


def test_the_same_spec_gives_the_same_run_and_another_seed_another(finished, tmp_path):
    assert_same_run(finished, train(SPEC, tmp_path / "again", checkpoint_interval=0))
    other = train(SPEC._replace(seed=1), tmp_path / "other")
    assert (other / "records.jsonl").read_bytes() != (finished / "records.jsonl").read_bytes()


def test_defaults_are_written_out(finished):
    run = json.loads((finished / "spec.json").read_text())["run"]
    assert run["development"]["settings"] == {"num_lifetimes": 4, "generations": 5}
    assert run["env"]["settings"] == {"arms": 2, "pulls": 5}
    assert parse_run_spec(run) == complete_spec(SPEC) and spec_to_json(parse_run_spec(run)) == run


class Killed(Exception):
    pass


def interrupted(out: Path, after: int, every: float = 0.0) -> Path:
    def on_progress(done, total, record):
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        train(SPEC, out, on_progress=on_progress, checkpoint_interval=every)
    return out


@pytest.mark.parametrize(("after", "every"), [(3, 0.0), (5, 0.0), (3, 1e9)])
def test_an_interrupted_run_goes_on_to_the_same_bits(finished, tmp_path, after, every):
    out = interrupted(tmp_path / "run", after, every)
    with (out / "records.jsonl").open("a") as file:
        file.write('{"generation": 4, "env_st')  # what a kill may leave behind a checkpoint
    with (out / "timing.jsonl").open("a") as file:
        file.write('{"dispatch": 4')
    with (out / "timing.jsonl").open("ab") as file:
        file.write(b"\n\xff\xfe\n")
    assert_same_run(finished, train(SPEC, out))
    timing = [json.loads(line)["dispatch"] for line in (out / "timing.jsonl").read_text().splitlines()]
    assert timing == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_overwritten(finished):
    before = contents(finished)
    with pytest.raises(BadInput, match="holds a finished run; not overwritten"):
        train(SPEC, finished)
    assert contents(finished) == before


def test_another_spec_does_not_go_on_in_the_folder(tmp_path):
    out = interrupted(tmp_path / "run", 2)
    before = contents(out)
    with pytest.raises(BadInput, match="holds a run of another spec; not overwritten"):
        train(SPEC._replace(seed=3), out)
    assert contents(out) == before


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds no run; not overwritten"):
        train(SPEC, tmp_path)
    with pytest.raises(BadInput, match="is not a folder; not overwritten"):
        train(SPEC, tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": "randm"}, "there is no agent 'randm'; did you mean random"),
        ({"env": "bandit:arm=3"}, "environment 'bandit' has no setting 'arm'; did you mean arms"),
        ({"env": "bandit:num_arms=0"}, "'arms' must be at least 2"),
        ({"drives": {"payot": 1}}, "named 'payot'; did you mean payout"),
        ({"development": "single_lifetime:num_lifetimes=0"}, "'lives' must be at least 1"),
    ],
)
def test_a_bad_spec_leaves_nothing_behind(tmp_path, changed, said):
    with pytest.raises(BadInput, match=said):
        train(parse_run_spec(spec_to_json(SPEC) | changed), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"sedd": 0}, r"unknown key 'sedd' in \[run\]; did you mean seed\?"),
        ({"env": {"nme": "bandit"}}, r"unknown key 'nme' in \[run.environment\]; did you mean name\?"),
        ({"env": 3}, r"\[run.environment\] must be a name or a table"),
        ({"seed": -1}, r"'seed' in \[run\] must be a whole number from 0 to 4294967295, not -1"),
        ({"seed": True}, r"'seed' in \[run\] must be a whole number"),
        ({"drives": {"payout": "much"}}, r"'payout' in \[run.drives\] must be a number, not 'much'"),
        ({"drives": {"payout": float("nan")}}, r"'payout' in \[run.drives\] must be finite, not nan"),
        ({"drives": {"payout": 10**400}}, r"'payout' in \[run.drives\] must be finite"),
        ({"drives": []}, r"\[run.drives\] must be a table"),
    ],
)
def test_a_spec_says_where_it_is_wrong(data, said):
    with pytest.raises(BadInput, match=said):
        parse_run_spec({"env": "bandit", "agent": "random"} | data)
    with pytest.raises(BadInput, match=r"\[run\] lacks the key 'agent'"):
        parse_run_spec({"env": "bandit"})


def test_damaged_records_are_refused(tmp_path):
    out = interrupted(tmp_path / "run", 3)
    path = out / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"generation": 2', b'"generation": 7'))
    with pytest.raises(BadInput, match=r"records.jsonl' is damaged"):
        train(SPEC, out)


def test_a_run_goes_on_only_where_it_would_end_in_the_same_bits(tmp_path, monkeypatch):
    out = interrupted(tmp_path / "run", 3)
    versions = library_versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: versions | {"jax": "0.0.1"})
    with pytest.raises(BadInput, match=r"was begun with jax .*, here is 0.0.1"):
        train(SPEC, out)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def on_progress(done, total, record):
        with pytest.raises(BadInput, match="another process is training"):
            train(SPEC, tmp_path / "run")

    train(SPEC, tmp_path / "run", on_progress=on_progress)


# What follows runs the real command and kills it.

EVOLUTION = "evolution:population_size=4,num_lifetimes=2,num_generations=120,generations_per_call=1"
COMMAND = ["train", "--agent", "recurrent_cells:hidden_size=2,readout_size=2", "--env", "bandit:num_arms=2,num_pulls=5", "--every", "0"]


def begin(out: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ontogeny", *COMMAND, "--development", EVOLUTION, "--out", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(out: Path, cache: Path) -> Path:
    process = begin(out, cache)
    printed, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained
    assert complained == "" and "a genome of" in printed
    return out


def kill_at(process: subprocess.Popen, records: Path, size: int, delay: float) -> bool:
    """Kills -9 a little after the records have reached a size; False where the process ended before."""
    while process.poll() is None:
        if records.exists() and records.stat().st_size >= size:
            time.sleep(delay)
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def killed_and_resumed(undisturbed: Path, out: Path, cache: Path, kills: int) -> None:
    chance = random.Random(kills)
    full = (undisturbed / "records.jsonl").stat().st_size
    landed = 0
    for size in sorted(chance.uniform(0, 0.95 * full) for _ in range(kills)):
        landed += kill_at(begin(out, cache), out / "records.jsonl", int(size), chance.uniform(0, 0.03))
    assert landed >= kills - 1, "the run was over before it could be killed"
    assert_same_run(undisturbed, finish(out, cache))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    return finish(folder / "undisturbed", folder / "cache")


def test_kill_9_at_a_few_moments_ends_in_the_same_bits(undisturbed, tmp_path):
    killed_and_resumed(undisturbed, tmp_path / "run", undisturbed.parent / "cache", kills=3)


@pytest.mark.slow
def test_kill_9_at_twenty_moments_ends_in_the_same_bits(undisturbed, tmp_path):
    killed_and_resumed(undisturbed, tmp_path / "run", undisturbed.parent / "cache", kills=20)


def test_the_comparison_finds_a_record_that_is_there_twice(undisturbed, tmp_path):
    wrong = shutil.copytree(undisturbed, tmp_path / "wrong")
    assert_same_run(undisturbed, wrong)
    path = wrong / "records.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(AssertionError, match=r"records.jsonl differs"):
        assert_same_run(undisturbed, wrong)
