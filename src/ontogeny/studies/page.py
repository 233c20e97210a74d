"""The page of a study: one self-contained HTML file, written from records alone.

The module runs no agent and imports no JAX. The same records give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ontogeny.report import page
from ontogeny.report.formatting import format_count, format_number, format_total
from ontogeny.runs.files import write_bytes
from ontogeny.runs.folder import read_spec
from ontogeny.runs.formats import SPEC_FILE
from ontogeny.runs.records import Record
from ontogeny.studies import attribution_table, comparison, figures, pairwise, published, recorded_lifetimes, sweep_page
from ontogeny.studies.comparison import AgentResult
from ontogeny.studies.kinds import PAGE_FILE, study_kinds
from ontogeny.studies.pairwise import PairwiseDifference
from ontogeny.studies.records import Failure, read_failures, read_records, read_seconds

APPROACHES = ("evolution", "ml_code", "baseline")  # in the order of the page
MAX_FAILURES = 100  # that the page lists
SECTIONS_OF_COMPARISON = ("published", "differences", "approaches", "weight-sharing", "upper-bound")
TEXTS = page.load_macros("ontogeny.studies", "study.html.j2")
Results = Mapping[str, list[AgentResult]]


def write(folder: Path) -> Path:
    """Write the page of a study into its folder.

    Raises:
        BadInput: If the folder holds no study, or its files are damaged or of another format.
    """
    study = read_study(folder)
    kinds = [kind for kind in study_kinds().values() if (folder / kind.name / SPEC_FILE).is_file()]
    included = [kind.render_section(folder / kind.name) for kind in kinds]
    path = folder / PAGE_FILE
    failures = read_failures(folder)
    write_bytes(path, render(study, read_records(folder), read_seconds(folder), included, failures).encode())
    return path


def read_study(folder: Path) -> dict[str, Any]:
    """The spec of a study, the versions of the libraries, and the planned ids."""
    description = read_spec(folder)
    return description.spec | {"versions": description.versions} | description.details


def render(
    study: Mapping[str, Any],
    records: Sequence[Record],
    seconds_by_id: Mapping[str, float],
    included: Sequence[page.Section] = (),
    failures: Mapping[str, Failure] | None = None,
) -> str:
    """Render the page.

    Args:
        study: Title, question, seed, text and digest of the spec, versions of the libraries, and the planned ids; the
            cells of a sweep, and the part that the folder holds.
        records: All records of the study.
        seconds_by_id: Wall time by id of the record.
        included: Sections of the studies that this one includes.
        failures: By the id of the measurement.
    """
    failures, cells = failures or {}, study.get("cells", ())
    all_cells = comparison.collect_results(records, seconds_by_id)
    results = sweep_page.main_results(cells, all_cells)
    hidden = {(r.env, r.agent) for of_env in all_cells.values() for r in of_env if r not in results[r.env]}
    visible_records = [r for r in records if r["kind"] != "recorded_lifetime" or (r["env"], r["agent"]) not in hidden]
    envs = [record for record in records if record["kind"] == "environment"]
    evaluated = [env for env in envs if env["env"] in results]
    sentences = ["No measurement has been recorded yet, so there is no conclusion."]
    if "part" in study:
        sentences = [TEXTS.part(study["part"])]
    elif results:
        sentences = [*pairwise.conclusions(records, results), *sweep_page.best_cells(cells, all_cells)]
    all_results = [row for rows in results.values() for row in rows]
    approaches = {row.approach for row in all_results}
    has_published = any(comparison.published_scores(env) for env in envs)
    min_seeds = min((len(row.seed_means) for row in all_results if row.approach == "evolution"), default=0)
    minutes = sum(seconds_by_id.values()) / 60
    bodies = [
        ("missing", "What is missing", incomplete(study["planned_ids"], records, failures)),
        ("setup", "Agents and environments", TEXTS.setup(_environments_table(envs))),
        ("cells", "Every cell of the sweep", sweep_page.render(cells, all_cells, failures)),
        ("published", "Published scores and ours", _published(records, evaluated, results)),
        ("scores", "What each agent scores", _scores(records, evaluated, results)),
        ("differences", "How the agents differ", _differences(records, results)),
        ("approaches", "The two approaches side by side", _approaches(records, results)),
        ("cost", "What development costs", _cost(evaluated, results)),
        ("learning", "Learning within a lifetime", _learning(evaluated, results)),
        ("lifetimes", "One lifetime of each agent", _lifetimes(visible_records, envs)),
        ("attribution", "Where the ability is stored", attribution_table.render(records)),
        ("weight-sharing", "What weight sharing contributes", _weight_sharing(records, results)),
        *included,
        ("upper-bound", "Distance to the upper bound", _headroom(records, evaluated, results)),
        ("limits", "What this does not show", TEXTS.limits(min_seeds, has_published, approaches)),
        ("reproduce", "How to reproduce this page", TEXTS.reproduce(study, minutes)),
    ]
    left_out = SECTIONS_OF_COMPARISON if "part" in study else ()
    sections = [page.Section(anchor, title, Markup(body)) for anchor, title, body in bodies if anchor not in left_out]
    return page.document(study["title"], TEXTS.opening(study["question"], sentences), sections, "study")


def incomplete(
    planned_ids: Sequence[str], records: Sequence[Record], failures: Mapping[str, Failure] | None = None
) -> Markup:
    """Render a notice of the planned records that are missing, and why; empty where none is."""
    recorded = {record["id"] for record in records}
    missing = [name for name in planned_ids if name not in recorded]
    failed = [f for f in (failures or {}).values() if not f.missing and f.id not in recorded]
    if not missing and not failed:
        return Markup()
    rows = [[failure.id, failure.sentence] for failure in failed[:MAX_FAILURES]]
    caption = (
        f"The {len(rows)} of {len(failed)} failures" if len(rows) < len(failed) else "The measurements that failed"
    )
    table = page.table(caption, ["measurement", "why it failed"], rows) if rows else ""
    return TEXTS.incomplete(len(planned_ids), missing, table)


def _environments_table(envs: Sequence[Record]) -> Markup:
    """Sizes and reward of each environment."""
    rows = []
    for env in envs:
        description = Markup('<span class="prose">{}</span>').format(env.get("description", ""))
        sizes = [f"{env['num_steps']:,}", f"{env['num_actions']}", f"{env['num_observations'] or 'vectors'}"]
        rows.append([env["env"], description, *sizes, _reward_formula(env.get("drives", {}))])
    titles = ["environment", "description", "steps per lifetime", "actions", "observations", "reward"]
    return page.table("The environments, in the order in which they were run", titles, rows, numeric=(2, 3, 4))


def _reward_formula(drives: Mapping[str, float]) -> str:
    """The reward as a weighted sum of outcome features: `food + water − pain`."""
    formula = ""
    for feature, weight in drives.items():
        if weight:
            size = "" if abs(weight) == 1 else f"{format_number(abs(weight))} "
            sign = ("− " if weight < 0 else "+ ") if formula else ("−" if weight < 0 else "")
            formula += f"{' ' if formula else ''}{sign}{size}{feature}"
    return formula or "none"


def _published(records: Sequence[Record], envs: Sequence[Record], results: Results) -> Markup:
    """The published tables with our scores; empty where the study measures no row of them."""
    groups: dict[int, list[Record]] = {}
    for env in envs:
        if comparison.published_scores(env):
            groups.setdefault(comparison.published_row(env).table, []).append(env)
    if not groups:
        return Markup()
    bounds = comparison.collect_upper_bounds(records)
    tables = Markup().join(_published_table(number, group, results, bounds) for number, group in sorted(groups.items()))
    return TEXTS.published(*(page.verdict(word) for word in page.VERDICT_SIGNS), tables)


def _published_table(
    number: int, envs: Sequence[Record], results: Results, upper_bounds: Mapping[str, tuple[str, float]]
) -> Markup:
    """One published table: the published scores with our scores of the same algorithms, then our other agents."""
    titles = [_column_title(comparison.published_row(env)) for env in envs]
    rows, notes = _published_rows(number, envs, results)
    rows += _own_rows(envs, results, upper_bounds)
    for env, title in zip(envs, titles, strict=True):
        name, bound = upper_bounds.get(env["env"], ("", math.inf))
        if max(comparison.published_scores(env).values()) > bound:
            notes.append(
                f"{title}: the best published score is higher than the {name} score, {format_number(bound)}, which no "
                "strategy exceeds on average. The excess is due to rounding or chance; our agents are compared with "
                "the upper bound."
            )
    caption = f"{published.SOURCE}, Table {number}: score per lifetime, published above and ours below"
    table = page.table(caption, ["", *titles], rows, numeric=range(1, len(titles) + 1))
    return table + Markup().join(Markup('<p class="note">{}</p>').format(note) for note in notes)


def _column_title(row: published.PublishedRow) -> str:
    """The number of episodes and of arms."""
    return f"n = {row.n}" if row.k is None else f"k = {row.k}, n = {row.n}"


def _published_rows(number: int, envs: Sequence[Record], results: Results) -> tuple[list[page.TableRow], list[str]]:
    """The rows of the published algorithms, and notes on those whose published score we do not reproduce."""
    by_spec = {(row.env, row.agent_spec): row for env in envs for row in results[env["env"]]}
    rows, notes = [], []
    for algorithm in dict.fromkeys(name for env in envs for name in comparison.published_scores(env)):
        agent_spec = comparison.matching_agent(envs[0], algorithm) or ""
        matches = [by_spec.get((env["env"], agent_spec)) for env in envs]
        cells = [algorithm]
        for env, match in zip(envs, matches, strict=True):
            scores = comparison.published_scores(env)
            template = "<b>{}</b>" if scores[algorithm] == max(scores.values()) else "{}"
            score = Markup(template).format(f"{scores[algorithm]:,.1f}")
            our_score = Markup("<br>") + page.score(match.score) if match else ""
            cells.append(Markup('<span class="published">{}</span>{}').format(score, our_score))
        rows.append(page.TableRow(cells))
        if any(matches) and (number, algorithm) in published.DISCREPANCY_NOTES:
            notes.append(f"{algorithm}: {published.DISCREPANCY_NOTES[number, algorithm]}.")
    return rows, notes


def _own_rows(
    envs: Sequence[Record], results: Results, upper_bounds: Mapping[str, tuple[str, float]]
) -> list[page.TableRow]:
    """The rows of our agents that implement no published algorithm."""
    matching = published.MATCHING_AGENTS[comparison.published_row(envs[0]).table].values()
    in_envs = [row for env in envs for row in results[env["env"]]]
    approaches = {row.agent: row.approach for row in in_envs if row.agent_spec not in matching}
    agents = sorted(approaches, key=lambda agent: (APPROACHES.index(approaches[agent]), agent))
    rows = []
    for agent in agents:
        cells = [page.agent(agent, approaches[agent])]
        for env in envs:
            row = next((row for row in results[env["env"]] if row.agent == agent), None)
            cell = page.score(row.score) if row else Markup()
            if row is not None and row.approach != "baseline":
                bound = comparison.upper_bound_value(upper_bounds, env["env"])
                best = comparison.compare_with_best_published(row.score, comparison.published_scores(env), bound)
                assert best is not None
                detail = f"{best.num_standard_errors:+.0f} standard errors from {best.baseline}"
                cell += page.verdict(best.verdict, detail)
            cells.append(cell)
        rows.append(page.TableRow(cells, "first" if agent == agents[0] else ""))
    return rows


def _scores(records: Sequence[Record], envs: Sequence[Record], results: Results) -> Markup:
    """One chart of scores per environment."""
    if not envs:
        return Markup()
    panels = []
    upper_bounds = comparison.collect_upper_bounds(records)
    for i, env in enumerate(envs):
        rows = results[env["env"]]
        agent_specs = {row.agent_spec for row in rows}
        scores = comparison.published_scores(env).items()
        not_run = [entry for entry in scores if comparison.matching_agent(env, entry[0]) not in agent_specs]
        chart = figures.draw_scores(f"score{i}", rows, not_run, upper_bounds.get(env["env"]))
        num_tasks = sorted({row.score.num_tasks for row in rows})
        count = f"{num_tasks[0]:,}" if len(num_tasks) == 1 else f"{num_tasks[0]:,} to {num_tasks[-1]:,}"
        panels.append(page.figure(chart, env["env"], f"{count} held-out tasks."))
    words = {"evolution": "evolved agents", "ml_code": "ML code", "baseline": "baselines"}
    keys = {approach: page.agent(word, approach) for approach, word in words.items()}
    return TEXTS.scores(**keys, panels=page.panels(panels))


def _differences(records: Sequence[Record], results: Results) -> Markup:
    """The differences between the agents of each environment; many pairs of baselines can be unfolded."""
    pairs = pairwise.compare_pairs(records, results)
    if not pairs:
        return Markup()
    visible = [pair for of_env in pairs.values() for pair in pairwise.main_pairs(of_env)]
    tables = {
        env: _pairs_table(f"{env}, all {len(of_env)} pairs", of_env)
        for env, of_env in pairs.items()
        if len(of_env) > len(pairwise.main_pairs(of_env))
    }
    sentences = [pairwise.describe_environment(of_env) for of_env in pairs.values()]
    return TEXTS.differences(sentences, _pairs_table("All environments" if tables else "All pairs", visible), tables)


def _pairs_table(title: str, pairs: Sequence[PairwiseDifference]) -> Markup:
    """One row per pair of agents."""
    rows = [
        [
            pair.env,
            page.agent(pair.first.agent, pair.first.approach),
            page.agent(pair.second.agent, pair.second.approach),
            page.difference(pair.difference),
            page.agent(pair.first.agent, pair.first.approach)
            if pair.is_claimed
            else pairwise.describe_unclaimed(pair.difference),
        ]
        for pair in pairs
    ]
    caption = f"{title}: first agent minus second, score per lifetime, paired by task, with the 95 % interval"
    return page.table(caption, ["environment", "first", "second", "difference", "higher"], rows, numeric=(3,))


def _approaches(records: Sequence[Record], results: Results) -> Markup:
    """The best agents of both approaches, one row per environment."""
    leaders = {"ml_code": "ML code", "evolution": "evolution"}
    rows = []
    for env, ml_code, evolution, difference, verdict in comparison.compare_approaches(records, results):
        scores = [_agent_with_score(evolution), _agent_with_score(ml_code)]
        rows.append(
            [env, *scores, page.difference(difference), leaders.get(verdict) or pairwise.describe_unclaimed(difference)]
        )
    if not rows:
        return Markup()
    caption = "ML code minus evolution, score per lifetime, paired by task, with the 95 % interval"
    titles = ["environment", "best evolved", "best ML code", "difference", "higher"]
    return TEXTS.approaches(page.table(caption, titles, rows, numeric=(3,)))


def _agent_with_score(result: AgentResult) -> Markup:
    """The name of an agent with its score below."""
    return Markup("{}<br>{}").format(page.agent(result.agent, result.approach), page.score(result.score))


def _cost(envs: Sequence[Record], results: Results) -> Markup:
    """Charts and table of score against the cost of development."""
    panels, rows = [], []
    for i, env in enumerate(envs):
        trained = [row for row in results[env["env"]] if row.approach != "baseline"]
        if trained:
            panels.append(page.figure(figures.draw_cost(f"cost{i}", trained), env["env"], ""))
            rows += [_cost_cells(row) for row in trained]
    if not rows:
        return Markup()
    caption = "Cost of development, per seed. "
    caption += "Seconds are wall time on the machine that ran this study, compilation included"
    titles = ["environment", "agent", "parameters", "training steps", "seconds", "trained in", "score"]
    titles.append("seeds from … to")
    return TEXTS.cost(page.panels(panels), page.table(caption, titles, rows, numeric=(2, 3, 4, 6, 7)))


def _cost_cells(row: AgentResult) -> list[str]:
    """The cost of one agent."""
    means = row.seed_means
    return [
        row.env,
        page.agent(row.agent, row.approach),
        f"{row.num_parameters:,}",
        format_count(row.num_training_env_steps) if row.num_training_env_steps else "none",
        "–" if row.training_seconds is None else f"{row.training_seconds:,.0f}",
        "" if row.train_env == row.env else row.train_env,
        page.score(row.score),
        f"{format_number(min(means))} to {format_number(max(means))}" if len(means) > 1 else "one seed",
    ]


def _learning(envs: Sequence[Record], results: Results) -> Markup:
    """One chart per environment: the curves of trained agents, the oracle, and the best and worst other baseline."""
    panels = []
    for i, env in enumerate(envs):
        rows = results[env["env"]]
        baselines = [row for row in rows if row.approach == "baseline"]
        oracle = [row for row in baselines if row.privileged][:1]
        unprivileged = [row for row in baselines if not row.privileged]
        curves = [row for row in rows if row.approach != "baseline"] + oracle
        curves += unprivileged[:1] + unprivileged[1:][-1:]
        if len(rows[0].curve.position) > 1:
            panels.append(page.figure(figures.draw_learning_curves(f"learn{i}", curves), env["env"], ""))
    return TEXTS.learning(page.panels(panels)) if panels else Markup()


def _lifetimes(records: Sequence[Record], envs: Sequence[Record]) -> Markup:
    """Drawings of recorded lifetimes; the baselines can be unfolded where a trained agent is shown."""
    parts = []
    for env in envs:
        recorded = [r for r in records if r["kind"] == "recorded_lifetime" and r["env"] == env["env"]]
        if recorded:
            drawings = {r["agent"]: _lifetime_figure(r, env) for r in recorded}
            trained = [r["agent"] for r in recorded if r["approach"] != "baseline"]
            baselines = [r["agent"] for r in recorded if r["approach"] == "baseline"]
            hidden = baselines if trained else []
            legend = recorded_lifetimes.draw(recorded[0], env).legend
            visible = [drawings[agent] for agent in trained or baselines]
            parts.append((env["env"], legend, visible, {agent: drawings[agent] for agent in hidden}))
    return TEXTS.lifetimes(parts) if parts else Markup()


def _lifetime_figure(recorded: Record, env: Record) -> Markup:
    """The drawing of one recorded lifetime with its total score."""
    total = format_total(sum(recorded["trajectory"]["score"]))
    title = page.agent(recorded["agent"], recorded["approach"])
    return page.figure(recorded_lifetimes.draw(recorded, env).svg, title, f"Total score {total}.")


def _weight_sharing(records: Sequence[Record], results: Results) -> Markup:
    """The networks with and without shared weights, one row per environment in which both were trained."""
    differences = comparison.collect_differences(records)
    rows = []
    for env, env_results in results.items():
        by_name = {row.agent: row for row in env_results}
        cells, dense = by_name.get("recurrent_cells"), by_name.get("recurrent")
        if cells is not None and dense is not None and cells.train_env == dense.train_env == env:
            difference = comparison.score_difference(differences, cells, dense)
            rows.append([env, _score_with_cost(cells), _score_with_cost(dense), page.difference(difference)])
    if not rows:
        return Markup()
    caption = "Shared against dense weights, each trained in the environment shown, with the 95 % interval"
    titles = ["environment", "recurrent_cells", "recurrent", "cells − dense"]
    return TEXTS.weight_sharing(page.table(caption, titles, rows, numeric=(1, 2, 3)))


def _score_with_cost(row: AgentResult) -> Markup:
    """A score with the size and the training steps of the agent below."""
    cost = f"{row.num_parameters:,} parameters, {format_count(row.num_training_env_steps)} steps"
    return Markup("{}<br><small>{}</small>").format(page.score(row.score), cost)


def _headroom(records: Sequence[Record], envs: Sequence[Record], results: Results) -> Markup:
    """How far the best agent stays below the upper bound or the oracle, one row per environment."""
    rows, exceeded = [], []
    upper_bounds, differences = comparison.collect_upper_bounds(records), comparison.collect_differences(records)
    for env in envs:
        env_results = results[env["env"]]
        best = next((row for row in env_results if row.approach != "baseline"), None)
        oracle = next((row for row in env_results if row.privileged), None)
        exact = upper_bounds.get(env["env"])
        if best is None or (oracle is None and exact is None):
            continue
        headroom = comparison.headroom(differences, best, oracle, exact[1] if exact else math.inf)
        is_exceeded = exact is None and headroom.high < 0
        if is_exceeded:
            exceeded.append(env["env"])
        bounds = [format_number(exact[1]) if exact else "unknown", page.score(oracle.score) if oracle else "–"]
        distance = "exceeded" if is_exceeded else page.difference(headroom)
        rows.append([env["env"], *bounds, _agent_with_score(best), distance])
    if not rows:
        return Markup()
    caption = "Score per lifetime below the Bayes-optimal score where it is known, else below the oracle "
    caption += "(paired by task), with the 95 % interval"
    titles = ["environment", "Bayes-optimal", "oracle", "our best", "difference"]
    has_exact = any(env["env"] in upper_bounds for env in envs)
    return TEXTS.headroom(has_exact, page.table(caption, titles, rows, numeric=(1, 2, 4)), exceeded)
