"""Budgets of the mesa study: which contents, how many runs of each, and how long each is trained and audited.

The size `planning` is the planning experiment of the full study without anything else.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from ontogeny import plugins
from ontogeny.studies.mesa.distilled import TEACHERS
from ontogeny.studies.mesa.planning.schedule import PlanningBudget, planning_budgets

CONDITIONS = ("active", "sham")  # in a sham no report changes the environment; chance does


class SearchBudget(NamedTuple):
    """How content is trained on return."""

    population_size: int
    num_lifetimes: int
    num_generations: int


class MesaBudget(NamedTuple):
    """The size of a mesa study.

    Attributes:
        name: Name of the size, as the command line takes it.
        num_runs: Independent runs of each content, training and condition.
        has_evolution_sham: Whether training on return has its sham condition as well.
        contents: Names of the contents, as capacity grows.
        num_segments: Segments of the lifetime in which a content is trained by prediction.
        num_lifetimes: Lifetimes in which each run of a content is audited.
        searches: Budget of training on return, by content.
        planners: Contents that predict payouts in `chain`, with their sizes (0: the default).
        num_chains: Lifetimes in each stage of the curriculum of `planners`.
        num_chain_lifetimes: Lifetimes in which planners, students, organisms and distilled networks are audited.
        num_students: Networks that are distilled from the planner.
        organisms: Controls whose fingerprints stand beside those of the subjects.
        teachers: Organisms from which networks are distilled.
        num_updates: Updates in each stage of the curriculum of a distillation.
        evolved: Agent, environment and development of the agents that are evolved from scratch.
        planning: The planning experiment; None leaves it out.
    """

    name: str
    num_runs: int
    has_evolution_sham: bool
    contents: tuple[str, ...]
    num_segments: int
    num_lifetimes: int
    searches: Mapping[str, SearchBudget]
    planners: Mapping[str, int] = {}
    num_chains: int = 0
    num_chain_lifetimes: int = 0
    num_students: int = 0
    organisms: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    num_updates: int = 0
    evolved: tuple[tuple[str, str, str], ...] = ()
    planning: PlanningBudget | None = None

    def conditions(self, training: str) -> tuple[str, ...]:
        """The conditions of a training, `prediction` or `return`."""
        return CONDITIONS if training == "prediction" or self.has_evolution_sham else CONDITIONS[:1]


DENSE, CELLS = "recurrent:hidden_size=24", "recurrent_cells"
DEFAULT_SEARCH = SearchBudget(64, 32, 70)
SEARCHES = {
    "table": SearchBudget(32, 32, 40),
    "linear": SearchBudget(32, 32, 60),
    "mlp": SearchBudget(64, 32, 60),
    "gru": SearchBudget(64, 32, 70),
    "causal_transformer": SearchBudget(64, 16, 70),
}
DENSE_SEARCH = "evolution:strategy=Sep_CMA_ES,population_size=64,num_lifetimes={},num_generations={},sigma=0.2"
CELLS_SEARCH = "evolution:population_size=64,num_lifetimes={},num_generations={}"
EVOLVED = (
    (DENSE, "bandit:num_pulls=100", DENSE_SEARCH.format(32, 300)),
    (CELLS, "bandit:num_pulls=100", CELLS_SEARCH.format(32, 100) + ",learning_rate=0.03"),
    (DENSE, "random_mdp", DENSE_SEARCH.format(32, 150)),
    (CELLS, "random_mdp", CELLS_SEARCH.format(16, 40)),
    (DENSE, "two_step", DENSE_SEARCH.format(16, 300)),
    (CELLS, "two_step", CELLS_SEARCH.format(32, 60) + ",learning_rate=0.03"),
    (DENSE, "chain", DENSE_SEARCH.format(16, 200)),
    (CELLS, "chain", CELLS_SEARCH.format(16, 60) + ",learning_rate=0.03"),
)
MINUTES = {"full": 60, "small": 2, "brief": 2, "planning": 0}  # on two idle cores, without the planning experiment
MINUTES_OF_BRIEF_PLANNING = 2


def content_keys() -> dict[str, int]:
    """The registered predictors of growing capacity, each with the number that enters its random keys."""
    keys = {name: plugins.get_attribute("content", name, "KEY_NUMBER") for name in plugins.list_names("content")}
    return dict(sorted(((name, key) for name, key in keys.items() if key is not None), key=lambda entry: entry[1]))


@cache
def budgets() -> dict[str, MesaBudget]:
    """All sizes of the study by name."""
    contents = tuple(content_keys())
    full = MesaBudget(
        "full",
        num_runs=10,
        has_evolution_sham=True,
        contents=contents,
        num_segments=2000,
        num_lifetimes=400,
        searches={name: SEARCHES.get(name, DEFAULT_SEARCH) for name in contents},
        planners={"table": 0, "mlp": 48, "gru": 48},
        num_chains=2500,
        num_chain_lifetimes=100,
        num_students=1,
        num_updates=800,
        organisms=("win_stay", "td_one", "td_zero", "successor", "latent_state_learner", "planner"),
        teachers=TEACHERS,
        evolved=EVOLVED,
        planning=planning_budgets()["full"],
    )
    small = MesaBudget(
        "small",
        num_runs=5,
        has_evolution_sham=False,
        contents=("table", "linear", "gru"),
        num_segments=400,
        num_lifetimes=200,
        searches={
            "table": SearchBudget(16, 16, 10),
            "linear": SearchBudget(32, 16, 30),
            "gru": SearchBudget(32, 16, 50),
        },
        planning=planning_budgets()["brief"],
    )
    brief = small._replace(
        name="brief",
        contents=("table", "gru"),
        num_segments=300,
        num_lifetimes=100,
        searches={"table": SearchBudget(16, 16, 10), "gru": SearchBudget(32, 16, 40)},
    )
    planning = MesaBudget(
        "planning",
        num_runs=full.num_runs,
        has_evolution_sham=False,
        contents=(),
        num_segments=0,
        num_lifetimes=0,
        searches={},
        planning=full.planning,
    )
    return {budget.name: budget for budget in (full, small, brief, planning)}


def estimate_minutes(budget: MesaBudget) -> float:
    """Minutes of a named size on two idle cores, about; 0 for a budget without a name of its own."""
    if budget.name not in MINUTES:
        return 0
    planning = budget.planning
    if planning is None:
        return MINUTES[budget.name]
    return MINUTES[budget.name] + (MINUTES_OF_BRIEF_PLANNING if planning.is_brief else planning.core_hours * 60 / 2)
