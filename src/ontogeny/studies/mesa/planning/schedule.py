"""Budgets of the planning experiment, and which runs are trained together."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from ontogeny.agents.stream_training import ContentSettings
from ontogeny.studies.mesa.planning.cells import CELLS, Cell
from ontogeny.studies.mesa.planning.experiment import MeasurementPlan, RunId
from ontogeny.studies.mesa.planning.training import TrainingPlan

NUM_UPDATES = 18_000  # of each run of the full experiment
SECONDS_PER_UPDATE = 0.055  # of one run at depth 2, on one processor core
RUNS_PER_MEASUREMENT = {"cpu": 1, "gpu": 20}  # by JAX's name of the device
CURVE_SHARES = (0.03, 0.06, 0.12, 0.18, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # of the updates, for measurements
BRIEF_CONTENT = ContentSettings(width=16, num_blocks=1, num_heads=2, learning_rate=0.003)


class PlanningBudget(NamedTuple):
    """The size of the planning experiment.

    Attributes:
        cells: By name.
        num_runs: Runs of each cell.
        training: Length of the training of a run.
        measurement: Size of the measurements of a run.
        num_together: Runs that a processor trains at once.
        is_brief: Whether the training is too short for a verdict.
    """

    cells: Mapping[str, Cell]
    num_runs: int
    training: TrainingPlan
    measurement: MeasurementPlan
    num_together: int = RUNS_PER_MEASUREMENT["cpu"]
    is_brief: bool = False

    @property
    def core_hours(self) -> float:
        """Hours of the training on one processor core, estimated for the architecture of the full experiment."""
        return len(self.cells) * self.num_runs * self.training.num_updates * SECONDS_PER_UPDATE / 3600


def list_run_groups(budget: PlanningBudget, device: str) -> Iterator[tuple[RunId, ...]]:
    """The runs in their order, in groups that are trained together; runs of the same program are neighbors.

    Args:
        budget: The size of the experiment.
        device: JAX's name of the device.
    """
    by_program: dict[tuple[ContentSettings, int], list[RunId]] = {}
    for name, cell in budget.cells.items():
        runs = by_program.setdefault(cell.program, [])
        runs += [RunId(name, run) for run in range(budget.num_runs)]
    size = max(budget.num_together, RUNS_PER_MEASUREMENT.get(device, 1))
    for runs in by_program.values():
        yield from (tuple(runs[start : start + size]) for start in range(0, len(runs), size))


def plan_measurements(training: TrainingPlan) -> MeasurementPlan:
    """The full measurements of a training."""
    calls = training.num_updates // training.updates_per_call
    curve = {max(round(share * calls), 1) * training.updates_per_call for share in CURVE_SHARES}
    return MeasurementPlan((0, *sorted(curve)))


@cache
def planning_budgets() -> dict[str, PlanningBudget]:
    """The sizes of the experiment by name, `full` and `brief`."""
    training = TrainingPlan(NUM_UPDATES, precision="bfloat16")
    brief_cells = {name: CELLS[name]._replace(content=BRIEF_CONTENT) for name in ("planner", "td_zero")}
    return {
        "full": PlanningBudget(CELLS, 10, training, plan_measurements(training)),
        "brief": PlanningBudget(
            brief_cells,
            num_runs=2,
            training=TrainingPlan(100, batch_size=16),
            measurement=MeasurementPlan(
                (0, 100), num_curve_streams=16, num_streams=16, runs_at_once=4, has_further_measures=False
            ),
            num_together=4,
            is_brief=True,
        ),
    }
