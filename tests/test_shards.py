"""Evolution in shards: bitwise equal results with every driver and after interruptions."""

import json
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.parallel.in_process import InProcess
from ontogeny.stages.shards import PREDICTION_FUNCTION
from ontogeny.stages.train import train
from sharded_run import SPEC, read_files


class BrokenDriver(InProcess):
    """Computes nothing, after so many generations."""

    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self.num_calls = num_calls

    def _compute(self, tasks, setup):
        if tasks[0].function != PREDICTION_FUNCTION:
            if self.num_calls == 0:
                raise KeyboardInterrupt
            self.num_calls -= 1
        yield from super()._compute(tasks, setup)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return train(SPEC, tmp_path_factory.mktemp("runs") / "run", driver=InProcess())


def test_generations_that_were_evaluated_are_not_evaluated_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for num_calls in (2, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            train(SPEC, folder, driver=BrokenDriver(num_calls), checkpoint_interval=3600)
    assert not (folder / "checkpoint.json").exists()  # three generations are in the log of the fitness only
    with (folder / "fitness.jsonl").open("ab") as file:
        file.write(b'{"generation": 4, "prop')  # killed while it wrote
    train(SPEC, folder, driver=BrokenDriver(1))
    assert read_files(folder) == read_files(undisturbed)
    assert len((folder / "fitness.jsonl").read_text().splitlines()) == 4


DAMAGES = [
    ("fitness", lambda text: "A" * 8 + text[8:]),
    ("fitness", lambda text: text[:-3]),
    ("fitness", lambda text: 1),
    ("proposal", lambda text: None),
    ("generation", lambda number: number + 1),
]


@pytest.mark.parametrize(("key", "damage"), DAMAGES)
def test_fitness_that_was_changed_is_refused(tmp_path: Path, key: str, damage) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, tmp_path, driver=BrokenDriver(1), checkpoint_interval=3600)
    record = json.loads((tmp_path / "fitness.jsonl").read_text())
    record[key] = damage(record[key])
    (tmp_path / "fitness.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(BadInput, match="is damaged"):
        train(SPEC, tmp_path, driver=InProcess())


def test_a_run_continues_as_it_began(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, tmp_path, driver=BrokenDriver(1), checkpoint_interval=0)
    with pytest.raises(BadInput, match="began with --on; without it"):
        train(SPEC, tmp_path)
    record = json.loads((tmp_path / "workers.json").read_text())
    record["workers"][0]["cpu_flags"] = "another processor"
    (tmp_path / "workers.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match="began on workers of another kind"):
        train(SPEC, tmp_path, driver=InProcess())


@pytest.mark.parametrize("development", ["single_lifetime", "evolution:strategy=SNES,population_size=4"])
def test_developments_without_shards_are_refused(tmp_path: Path, development: str) -> None:
    with pytest.raises(BadInput, match="cannot be divided into tasks"):
        train(SPEC | {"development": development}, tmp_path / "run", driver=InProcess())
    assert not (tmp_path / "run").exists()
