"""The page of the neural study, and its section on the page of a study that includes it; written from records alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_count, format_mean, format_number
from ontogeny.runs.files import write_bytes
from ontogeny.runs.records import Record
from ontogeny.stats import Interval, mean_interval
from ontogeny.studies.kinds import PAGE_FILE
from ontogeny.studies.neural import figures
from ontogeny.studies.neural.learning_curves import mean_of_curves
from ontogeny.studies.page import incomplete, read_study
from ontogeny.studies.records import read_records, read_seconds

SCHEMA = {
    "learning_curve": ("env", "learner", "seed", "num_steps", "num_episodes", "curve", "steps_to_aim", "final"),
    "picture": (
        "env",
        "time",
        "seed",
        "num_steps",
        "picture.observation",
        "picture.predicted",
        "picture.action",
        "picture.imagined_total_spread",
    ),
}
LABELS = {  # by learner: name, approach, how it learns
    "neural_model_based": ("neural_model_based", "ml_code", "within one lifetime, by a model of its own"),
    "neural_model_based:ablation=no_imagination": (
        "without imagination",
        "ml_code",
        "within one lifetime, from replayed steps alone",
    ),
    "evolved:recurrent": ("evolved recurrent", "evolution", "over many lifetimes, by evolution of all weights"),
    "ppo": ("PPO", "baseline", "in parallel copies of the environment (rejax)"),
    "dqn": ("DQN", "baseline", "in parallel copies of the environment, from replay (rejax)"),
    "random": ("random", "baseline", "not at all"),
}
TIMES = {"early": "Early in the lifetime", "late": "At the end of the lifetime"}
TEXTS = page.load_macros("ontogeny.studies.neural", "neural.html.j2")
Study = Mapping[str, Any]


class LearnerGroup(NamedTuple):
    """The runs of one learner in one environment.

    Attributes:
        steps_to_aim: Of all runs; one that never reached the aim counts with all of its steps.
        num_reached: Runs that reached it.
        finals: Final scores of the runs that have one.
    """

    env: str
    learner: str
    num_runs: int
    num_steps: int
    curves: list[list[float | None]]
    steps_to_aim: list[int]
    num_reached: int
    finals: list[float]

    @property
    def is_lower_bound(self) -> bool:
        """Whether the mean of the steps to the aim is a lower bound."""
        return self.num_reached < self.num_runs

    @property
    def label(self) -> str:
        """Name on the page."""
        return LABELS.get(self.learner, (self.learner, "", ""))[0]

    @property
    def approach(self) -> str:
        """Evolution, ML code or baseline."""
        return LABELS.get(self.learner, ("", "ml_code", ""))[1]


def write(folder: Path) -> Path:
    """Write the page of a neural study into its folder.

    Raises:
        BadInput: If the folder holds no neural study, or its files are damaged or of another format.
    """
    path = folder / PAGE_FILE
    write_bytes(path, render(read_study(folder), read_records(folder, SCHEMA), read_seconds(folder)).encode())
    return path


def render(study: Study, records: Sequence[Record], seconds_by_id: Mapping[str, float]) -> str:
    """Render the page.

    Args:
        study: Title, seed, budget, versions and planned ids.
        records: All records of the study.
        seconds_by_id: Wall time by id of the record.
    """
    groups = collect_groups(study, records)
    costs = {
        env["name"]: sum(g.num_steps * g.num_runs for g in groups if g.env == env["name"]) for env in envs_of(study)
    }
    reproduce = TEXTS.reproduce(
        study, {name: format_count(steps) for name, steps in costs.items()}, sum(seconds_by_id.values()) / 60
    )
    bodies = [
        ("missing", "What is missing", _missing(study, records)),
        ("curves", "Learning curves", render_curves(study, groups)),
        ("lifetime", "What the agent experienced", render_pictures(study, records)),
        ("limits", "What this does not show", TEXTS.limits(study["budget"], count_copies(study))),
        ("reproduce", "How to reproduce this page", reproduce),
    ]
    sections = [page.Section(anchor, title, Markup(body)) for anchor, title, body in bodies if body]
    return page.document(study["title"], TEXTS.opening(conclusions(study, groups)), sections, "study")


def render_section(folder: Path) -> page.Section:
    """Render the section for the page of a study that includes the neural study in `folder`."""
    study, records = read_study(folder), read_records(folder, SCHEMA)
    groups = collect_groups(study, records)
    curves, pictures = render_curves(study, groups), render_pictures(study, records)
    body = TEXTS.section(conclusions(study, groups), curves, pictures, f"{folder.name}/{PAGE_FILE}")
    return page.Section("neural", study["title"], Markup(body))


def envs_of(study: Study) -> list[Mapping[str, Any]]:
    """The budgets of the environments."""
    return list(study["budget"]["environments"])


def count_copies(study: Study) -> str:
    """In how many copies of each environment PPO and DQN act, as a part of a sentence."""
    parts = []
    for learner in ("ppo", "dqn"):
        copies = {
            env: settings[learner]["num_envs"]
            for env, settings in study.get("baselines", {}).items()
            if learner in settings
        }
        numbers = sorted(set(copies.values()))
        if len(numbers) == 1:
            parts.append(f"{LABELS[learner][0]} in {numbers[0]}")
        elif numbers:
            parts.append(f"{LABELS[learner][0]} in {', '.join(f'{copies[env]} in {env}' for env in copies)}")
    return "; ".join(parts)


def collect_groups(study: Study, records: Sequence[Record]) -> list[LearnerGroup]:
    """The runs of each learner, in the order of the budget."""
    groups = []
    for env in envs_of(study):
        for learner in study["budget"]["learners"]:
            runs = [r for r in records if r["kind"] == "learning_curve" and r["env"] == env["name"]]
            runs = [run for run in runs if run["learner"] == learner]
            if runs:
                is_reached = [run["steps_to_aim"] is not None for run in runs]
                steps = [run["steps_to_aim" if has else "num_steps"] for run, has in zip(runs, is_reached, strict=True)]
                finals = [run["final"] for run in runs if run["final"] is not None]
                curves, num_steps = [run["curve"] for run in runs], runs[0]["num_steps"]
                groups.append(
                    LearnerGroup(env["name"], learner, len(runs), num_steps, curves, steps, sum(is_reached), finals)
                )
    return groups


def conclusions(study: Study, groups: Sequence[LearnerGroup]) -> list[str]:
    """One sentence per environment: after how many steps each learner reached the aim."""
    sentences = []
    for env in envs_of(study):
        learners = [group for group in groups if group.env == env["name"] and group.learner != "random"]
        parts = [f"{group.label} {describe_steps(group)}" for group in learners]
        if parts:
            aim = f"{env['aim']:g}"
            sentences.append(f"{env['name']}, mean return {aim}: {'; '.join(parts)}.")
    return sentences


def describe_steps(group: LearnerGroup) -> str:
    """After how many steps the runs of a learner reached the aim, at least where some never did."""
    if not group.num_reached:
        return f"not within {format_count(group.num_steps)} steps"
    mean = sum(group.steps_to_aim) / group.num_runs
    steps = f"{format_count(round(mean, -2) if mean > 1000 else round(mean))} steps"
    if not group.is_lower_bound:
        return f"after {steps}"
    return f"after at least {steps}, as {group.num_reached} of {group.num_runs} runs reached it"


def render_curves(study: Study, groups: Sequence[LearnerGroup]) -> Markup:
    """A chart and a table for each environment."""
    parts = []
    for env in envs_of(study):
        learners = [group for group in groups if group.env == env["name"]]
        if not learners:
            continue
        curves = [
            figures.LearnerCurve(group.learner, group.label, group.num_steps, _points(group.curves))
            for group in learners
        ]
        chart = figures.draw_learning_curves(f"curves-{env['name']}", curves, env["aim"])
        note = f"{env['env']}; means over runs with 95 % intervals. Dashed: {env['aim']:g}."
        rows = [_row(group) for group in learners]
        heads = ["learner", "how it learns", "steps", "steps to the aim", "final score", "95 % interval"]
        table = page.table(f"{env['name']}: all learners", heads, rows, numeric=(2, 3, 4, 5))
        parts.append(Markup("{}{}").format(page.figure(chart, env["name"], note), table))
    return TEXTS.curves(study["budget"], Markup().join(parts)) if parts else Markup()


def render_pictures(study: Study, records: Sequence[Record]) -> Markup:
    """The pictures of one lifetime; empty where there is none."""
    parts = []
    for record in records:
        if record["kind"] == "picture":
            chart = figures.draw_picture(f"picture-{record['time']}", record["picture"])
            note = f"{record['env']}, after {record['num_steps']:,} steps of learning."
            parts.append(page.figure(chart, TIMES[record["time"]], note))
    shape = next((r["picture"]["observation"] for r in records if r["kind"] == "picture"), None)
    is_vector = bool(shape) and isinstance(shape[0], list) and not isinstance(shape[0][0], list)
    return TEXTS.lifetime(Markup().join(parts), is_vector) if parts else Markup()


def _points(curves: Sequence[Sequence[float | None]]) -> list[tuple[float, float, float] | None]:
    """Means with intervals by point; of a single run, its values without an interval."""
    if len(curves) == 1:
        return [None if mean is None else (mean, mean, mean) for mean in curves[0]]
    return mean_of_curves(curves)


def _row(group: LearnerGroup) -> list[str]:
    """The cells of a learner."""
    method = LABELS.get(group.learner, ("", "", ""))[2]
    reached = f"{group.num_reached} of {group.num_runs} runs"
    if group.num_reached:
        mean = f"{sum(group.steps_to_aim) / group.num_runs:,.0f}"
        reached = TEXTS.below(f"at least {mean}" if group.is_lower_bound else mean, reached)
    score, limits = "", ""
    if len(group.finals) > 1:
        interval: Interval = mean_interval(group.finals)
        score = format_mean(interval.mean, interval.standard_error)
        limits = f"{format_number(interval.low)} to {format_number(interval.high)}"
    elif group.finals:
        score = format_number(group.finals[0])
    name = page.agent(group.label, group.approach)
    return [name, method, f"{group.num_steps:,}", reached, score, limits]


def _missing(study: Study, records: Sequence[Record]) -> Markup:
    """A notice of missing records, with the package that PPO and DQN need."""
    notice = incomplete(study["planned_ids"], records)
    recorded = {record["id"] for record in records}
    missing = [name for name in study["planned_ids"] if name not in recorded]
    needs_rejax = any(name.split("/")[2] in ("ppo", "dqn") for name in missing if name.startswith("curve/"))
    return Markup("{}{}").format(notice, TEXTS.needs_rejax()) if needs_rejax else notice
