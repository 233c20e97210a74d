"""Runs the neural study: learning curves of all learners, and pictures of one lifetime.

The folder holds `spec.json`, `records.jsonl`, `timing.jsonl` and `report.html`, and `checkpoints/` while a lifetime is
under way. A killed study resumes when it is started again, and a long lifetime from its last checkpoint. Without the
package rejax, PPO and DQN are left out and named; with it, the same command adds them.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ontogeny.audit.suite import to_jsonable
from ontogeny.errors import require_one_of
from ontogeny.runs.folder import claim
from ontogeny.runs.formats import NEURAL_STUDY
from ontogeny.runs.records import RECORDS_FILE, Record, repair_records
from ontogeny.seeds import check_seed
from ontogeny.studies.neural import learners, learning_curves, page, pictures, rejax_baselines
from ontogeny.studies.neural.budgets import AGENT, EnvBudget, NeuralBudget, budgets, num_steps, with_settings
from ontogeny.studies.progress import OnEvent, StudyEvent, show_progress
from ontogeny.studies.records import read_records
from ontogeny.studies.stored_measurements import store_measurement

TITLE = "How many environment steps does learning take?"
NUM_PARTS = 20  # points of a learning curve
CHECKPOINTS = "checkpoints"  # folder with one folder for each lifetime that is under way
EARLY_SHARE = 0.05  # of the lifetime, at which the first pictures are drawn


class NeuralMeasurement(NamedTuple):
    """One or several records that are measured together."""

    ids: tuple[str, ...]
    measure: Callable[[learners.OnProgress], Iterator[Record]]
    needs_rejax: bool = False
    checkpoint_folder: Path | None = None  # which is removed once the records are stored


def run_neural_study(size: str | NeuralBudget, out: str | Path, seed: int = 0, on_event: OnEvent | None = None) -> Path:
    """Run the study in a folder, or resume it.

    Args:
        size: Name of a budget, or a budget.
        out: The folder; it is created where it is absent.
        seed: From 0 to 4294967295; seed and successive numbers are the seeds of the runs.
        on_event: Receives the events; by default progress is printed.

    Returns:
        The path of the page.

    Raises:
        BadInput: If there is no budget of this name, the seed is none, or the folder holds anything but this very
            study.
    """
    if isinstance(size, str):
        require_one_of(budgets(), size=size)
    budget, seed = budgets()[size] if isinstance(size, str) else size, check_seed(seed)
    check_seed(seed + budget.num_seeds)
    measurements = list(list_measurements(budget, seed, Path(out)))
    planned_ids = [name for measurement in measurements for name in measurement.ids]
    spec = {"title": TITLE, "seed": seed, "budget": to_jsonable(budget), "baselines": baseline_settings(budget)}
    folder = claim(Path(out), NEURAL_STUDY, spec, prepare=lambda _: {"planned_ids": planned_ids})
    with show_progress(on_event) as notify, folder:
        repair_records(Path(out) / RECORDS_FILE)
        return _run(Path(out), budget, measurements, notify)


def baseline_settings(budget: NeuralBudget) -> dict[str, dict[str, Any]]:
    """The settings of PPO and DQN by environment and learner, so that no study mixes runs with different ones."""
    baselines = [learner for learner in budget.learners if learners.is_baseline(learner)]
    return {
        env.name: {
            name: to_jsonable(rejax_baselines.settings_of(name, env.env.partition(",")[0])) for name in baselines
        }
        for env in budget.environments
    }


def list_measurements(budget: NeuralBudget, seed: int, out: Path) -> Iterator[NeuralMeasurement]:
    """All measurements of a study in a folder; seeds take turns, so that a killed study has some of everything."""
    for env in budget.environments:
        for run in range(budget.num_seeds):
            for learner in budget.learners:
                name = f"curve/{env.name}/{learner}/seed{seed + run}"
                folder = out / CHECKPOINTS / re.sub(r"[^\w]+", "-", name)
                measure = _bind(_measure_curve, name, env, learner, seed + run, folder)
                yield NeuralMeasurement((name,), measure, learners.is_baseline(learner), folder)
    if AGENT in budget.learners:
        env = budget.environments[0]
        names = tuple(f"picture/{env.name}/{time_name}" for time_name in ("early", "late"))
        yield NeuralMeasurement(names, _bind(_measure_pictures, env, seed))


def _bind(
    function: Callable[..., Iterator[Record]], *arguments: Any
) -> Callable[[learners.OnProgress], Iterator[Record]]:
    """A measurement as a function of the callback for progress alone."""
    return lambda on_progress: function(*arguments, on_progress)


def _measure_curve(
    name: str, env: EnvBudget, learner: str, seed: int, folder: Path, on_progress: learners.OnProgress
) -> Iterator[Record]:
    """The learning curve of one run of a learner."""
    text = with_settings(learner, env.agent_settings)
    run = learners.run_learner(
        text, env.env, seed, num_steps(env, learner), checkpoint_folder=folder, on_progress=on_progress
    )
    yield {
        "id": name,
        "kind": "learning_curve",
        "env": env.name,
        "learner": learner,
        "seed": seed,
        "num_steps": run.num_steps,
        "num_episodes": int(run.episodes.counts.sum()),
        "curve": learning_curves.mean_by_part(run.episodes, run.num_steps, NUM_PARTS),
        "steps_to_aim": learning_curves.steps_to_aim(run.episodes, env.aim, env.num_recent),
        "final": learning_curves.final_score(run.episodes, run.num_steps),
    }


def _measure_pictures(env: EnvBudget, seed: int, on_progress: learners.OnProgress) -> Iterator[Record]:
    """Pictures early and late in the lifetime of the agent."""
    del on_progress
    times = {"early": max(1, int(EARLY_SHARE * env.num_steps)), "late": env.num_steps}
    text = with_settings(AGENT, env.agent_settings)
    for name, picture in pictures.measure_pictures(text, env.env, seed, times).items():
        identity = {"id": f"picture/{env.name}/{name}", "kind": "picture", "env": env.name, "time": name}
        yield identity | {"seed": seed, "num_steps": times[name], "picture": picture}


def _run(folder: Path, budget: NeuralBudget, measurements: list[NeuralMeasurement], notify: OnEvent) -> Path:
    """Carry out the measurements that have no record yet, then write the page."""
    recorded = {record["id"] for record in read_records(folder, page.SCHEMA)}
    num_planned = sum(len(measurement.ids) for measurement in measurements)
    duration = f" About {budget.minutes:.0f} minutes on two idle cores." if budget.minutes else ""
    has_rejax = rejax_baselines.is_installed()
    missing = [m.ids[0] for m in measurements if m.needs_rejax and not recorded.issuperset(m.ids) and not has_rejax]
    if missing:
        duration += f" Without rejax ({rejax_baselines.INSTALL}) these records are missing: {', '.join(missing)}."
    notify(StudyEvent("start", TITLE + duration, len(recorded), num_planned))
    for number, measurement in enumerate(measurements, start=1):
        if recorded.issuperset(measurement.ids):
            _remove_checkpoint(measurement)
            continue
        if measurement.needs_rejax and not has_rejax:
            continue
        name = measurement.ids[0]
        notify(StudyEvent("work", name, number, len(measurements)))
        store_measurement(folder, name, measurement.measure, recorded, notify)
        _remove_checkpoint(measurement)
    page_path = page.write(folder)
    notify(StudyEvent("end", str(page_path), len(measurements), len(measurements)))
    return page_path


def _remove_checkpoint(measurement: NeuralMeasurement) -> None:
    """Removes the checkpoint of a measurement whose records are stored, and the folder of all once it is empty."""
    if measurement.checkpoint_folder is not None:
        learners.remove_checkpoint(measurement.checkpoint_folder)
        with contextlib.suppress(OSError):
            measurement.checkpoint_folder.parent.rmdir()
