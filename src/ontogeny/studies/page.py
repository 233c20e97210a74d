"""The report: one HTML page from the records of a study, for somebody who was not there.

Reads records and nothing else: it runs no agent and imports no JAX. The page needs no other file, no network and no
script; the same records give the same bytes.
"""

import math
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from ontogeny.errors import BadInput
from ontogeny.report import old_page as page
from ontogeny.studies import comparison, figures, published, recorded_lifetimes, records
from ontogeny.studies.comparison import Standing, amount, number
from ontogeny.studies.kinds import PAGE_FILE, RECORDS_FILE, study_kinds
from ontogeny.studies.records import Record

PROSE = tomllib.loads(Path(__file__).with_name("prose.toml").read_text(encoding="utf-8"))
MODELS = {"evolution": "evolution from scratch", "code": "genome = ML code", "reference": "reference"}


def write(folder: str | Path) -> Path:
    """Writes `report.html` into a study's folder and returns its path. Raises `BadInput` for bad records."""
    folder = Path(folder)
    found = records.read(folder / records.RECORDS_FILE)
    path = folder / PAGE_FILE
    text = render(found, records.read_times(folder / records.TIMES_FILE), _included_studies(folder))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def render(found: Sequence[Record], times: dict[str, float], included: Sequence[page.Section] = ()) -> str:
    """The whole page as text. `times`: seconds of wall time by the id of what they went into; `included`: sections of included studies."""
    study = next((record for record in found if record["kind"] == "study"), None)
    if study is None:
        raise BadInput("the records lack their first line, the study itself: run the study again in a new folder")
    if study["format"] != records.FORMAT:
        raise BadInput(f"the records have format {study['format']!r}, this version reads format {records.FORMAT}")
    environments = [record for record in found if record["kind"] == "env"]
    table = comparison.standings(found, times)
    measured = [env for env in environments if env["env"] in table]
    sections = [
        _lacking(found),
        _asked(study, environments),
        _published(found, measured, table),
        _scores(found, measured, table),
        _each_other(found, table),
        _cost(measured, table),
        _learning(measured, table),
        _replayed(found, environments),
        _addressing(found, table),
        *included,
        _bounded(found, measured, table),
        _not_shown(found, table),
        _repeat(study, times),
    ]
    return page.document(study["title"], _opening(study, found, table), [section for section in sections if section])


def _included_studies(folder: Path) -> list[page.Section]:
    folders = [(kind, folder / kind.name) for kind in study_kinds().values()]
    return [kind.render_section(inner) for kind, inner in folders if (inner / RECORDS_FILE).is_file()]


def _opening(study: Record, found: Sequence[Record], table: dict[str, list[Standing]]) -> str:
    if not table:
        answers = ["No measurement has been recorded yet, so there is no answer."]
    else:
        answers = list(comparison.answer(found, table))
    body = " ".join(f"<span>{escape(text)}</span>" for text in answers)
    return f'<p class="question">{escape(study["question"])}</p><p class="answer">{body}</p>'


def _lacking(found: Sequence[Record]) -> page.Section | None:
    lacking = comparison.missing(found)
    if not lacking:
        return None
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in lacking[:6])
    more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
    planned = sum(len(record["planned"]) for record in found if record["kind"] == "study")
    text = (
        f'<p class="notice" role="note">This study is not complete: of {planned} planned measurements, {len(lacking)} '
        f"are missing from the records ({shown}{more}). Start the study again with the same spec and folder: it goes "
        "on where it stopped.</p>"
    )
    return page.Section("missing", "What is missing", text)


def _asked(study: Record, environments: Sequence[Record]) -> page.Section:
    rows = [
        [
            escape(w["env"]),
            f'<span class="prose">{escape(w.get("help", ""))}</span>',
            f"{w['num_steps']:,}",
            f"{w['num_actions']}",
            f"{w['num_observations']}" if w["num_observations"] else "vectors",
            escape(_weighed(w.get("drives", {}))),
        ]
        for w in environments
    ]
    text = PROSE["asked"]
    text += page.table(
        "The environments, in the order in which they were run",
        ["env", "what it is", "steps in a lifetime", "actions", "observations", "reward"],
        rows,
        numeric=(2, 3, 4),
    )
    return page.Section("asked", "What was asked", text)


def _weighed(drives: dict[str, float]) -> str:
    """The steering as a sum: `food + water − pain`."""
    told = ""
    for feature, weight in drives.items():
        if weight:
            size = "" if abs(weight) == 1 else f"{number(abs(weight))} "
            sign = ("− " if weight < 0 else "+ ") if told else ("−" if weight < 0 else "")
            told += f"{' ' if told else ''}{sign}{size}{feature}"
    return told or "nothing"


def _published(
    found: Sequence[Record], environments: Sequence[Record], table: dict[str, list[Standing]]
) -> page.Section | None:
    groups: dict[int, list[Record]] = {}
    for env in environments:
        if comparison.published_lines(env):
            groups.setdefault(comparison.published_row(env).table, []).append(env)
    if not groups:
        return None
    marks = {word: page.verdict(word) for word in page.SIGNS}
    text = [Template(PROSE["published"]).substitute(marks)]
    for number_of_table, group in sorted(groups.items()):
        text.append(_published_table(number_of_table, group, table, comparison.ceilings(found)))
    return page.Section("published", "The published tables beside ours", "".join(text))


def _published_table(
    number_of_table: int,
    group: Sequence[Record],
    table: dict[str, list[Standing]],
    ceilings: dict[str, tuple[str, float]],
) -> str:
    """One printed table: its strategies with our measurement of the same, then the agents that are ours alone."""
    lines = list(dict.fromkeys(line for env in group for line in comparison.published_lines(env)))
    by_text = {(row.env, row.text): row for env in group for row in table[env["env"]]}
    ours = {line: comparison.ours_for(group[0], line) for line in lines}
    body, notes = [], []
    for line in lines:
        cells, beside = [escape(line)], False
        for env in group:
            printed = comparison.published_lines(env)
            row = by_text.get((env["env"], ours[line] or ""))
            value = f"{printed[line]:,.1f}"
            value = f"<b>{value}</b>" if printed[line] == max(printed.values()) else value
            beside = beside or row is not None
            cells.append(f'<span class="printed">{value}</span>' + (f"<br>{page.score(row.score)}" if row else ""))
        body.append(page.Row(cells))
        if beside and (number_of_table, line) in published.WHY:
            notes.append(f"{line}: {published.WHY[number_of_table, line]}.")
    rows = [row for env in group for row in table[env["env"]]]
    own = {row.agent: row.model for row in rows if row.text not in ours.values()}
    order = sorted(own, key=lambda agent: (list(MODELS).index(own[agent]), agent))
    for agent in order:
        cells = [page.agent(agent, own[agent])]
        for env in group:
            row = next((row for row in table[env["env"]] if row.agent == agent), None)
            cells.append("" if row is None else page.score(row.score))
            if row is not None and row.model != "reference":
                ceiling = ceilings.get(env["env"], ("", math.inf))[1]
                far = comparison.against_best(row.score, comparison.published_lines(env), ceiling)
                assert far is not None
                cells[-1] += page.verdict(far.verdict, f"{far.in_errors:+.0f} standard errors from {far.line}")
        body.append(page.Row(cells, "first" if agent == order[0] else ""))
    columns = [comparison.published_row(env) for env in group]
    heads = ["", *(f"n = {row.n}" if row.k is None else f"k = {row.k}, n = {row.n}" for row in columns)]
    for env, head in zip(group, heads[1:], strict=True):
        name, ceiling = ceilings.get(env["env"], ("", math.inf))
        if max(comparison.published_lines(env).values()) > ceiling:
            notes.append(
                f"{head}: the best printed value lies above the {name} score, {number(ceiling)}, which no strategy "
                "exceeds on average; it owes that to rounding or luck, and our agents are marked against the ceiling."
            )
    caption = f"{published.SOURCE}, Table {number_of_table}: score per lifetime, printed above and ours below"
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return page.table(caption, heads, body, numeric=tuple(range(1, len(heads)))) + told


def _scores(
    found: Sequence[Record], environments: Sequence[Record], table: dict[str, list[Standing]]
) -> page.Section | None:
    if not environments:
        return None
    panels = []
    ceilings = comparison.ceilings(found)
    for i, env in enumerate(environments):
        rows = table[env["env"]]
        ours = {row.text for row in rows}
        printed = comparison.published_lines(env).items()
        lines = [item for item in printed if comparison.ours_for(env, item[0]) not in ours]
        chart = figures.intervals(f"score{i}", rows, lines, ceilings.get(env["env"]))
        tasks = sorted({row.score.num_tasks for row in rows})
        over = f"{tasks[0]:,}" if len(tasks) == 1 else f"{tasks[0]:,} to {tasks[-1]:,}"
        panels.append(page.figure(chart, escape(env["env"]), f"{over} unseen tasks."))
    words = {"evolution": "evolved agents", "code": "code", "reference": "references"}
    keys = {model: page.agent(word, model) for model, word in words.items()}
    text = Template(PROSE["scores"]).substitute(keys)
    return page.Section("scores", "What each agent scores", text + page.panels(panels))


def _each_other(found: Sequence[Record], table: dict[str, list[Standing]]) -> page.Section | None:
    duels = comparison.head_to_head(found, table)
    if not duels:
        return None
    rows = []
    for duel in duels:
        rows.append(
            [
                escape(duel.env),
                f"{page.agent(duel.evolution.agent, 'evolution')}<br>{page.score(duel.evolution.score)}",
                f"{page.agent(duel.code.agent, 'code')}<br>{page.score(duel.code.score)}",
                page.difference(duel.difference),
                {"code": "code", "evolution": "evolution", "level": "not told apart"}[duel.verdict],
            ]
        )
    text = PROSE["models"]
    text += page.table(
        "Code minus evolution, score per lifetime, paired by task, with the 95 % interval",
        ["env", "best evolved", "best code", "difference", "ahead"],
        rows,
        numeric=(3,),
    )
    return page.Section("models", "The two models side by side", text)


def _cost(environments: Sequence[Record], table: dict[str, list[Standing]]) -> page.Section | None:
    panels, rows = [], []
    for i, env in enumerate(environments):
        ours = [row for row in table[env["env"]] if row.model != "reference"]
        if not ours:
            continue
        chart = figures.cost(f"cost{i}", ours)
        panels.append(page.figure(chart, escape(env["env"]), ""))
        for row in ours:
            spread = f"{number(min(row.seeds))} to {number(max(row.seeds))}" if len(row.seeds) > 1 else "one seed"
            rows.append(
                [
                    escape(env["env"]),
                    page.agent(row.agent, row.model),
                    f"{row.genome_size:,}",
                    amount(row.development_steps) if row.development_steps else "none",
                    "–" if row.seconds is None else f"{row.seconds:,.0f}",
                    "" if row.developed_on == env["env"] else escape(row.developed_on),
                    page.score(row.score),
                    spread,
                ]
            )
    if not rows:
        return None
    text = PROSE["cost"]
    text += page.panels(panels)
    text += page.table(
        "Cost of development, per seed. Seconds are wall time on the machine that ran this study, compilation included",
        [
            "env",
            "agent",
            "numbers in the genome",
            "steps before birth",
            "seconds",
            "developed elsewhere",
            "score",
            "seeds from … to",
        ],
        rows,
        numeric=(2, 3, 4, 6, 7),
    )
    return page.Section("cost", "What development costs", text)


def _learning(environments: Sequence[Record], table: dict[str, list[Standing]]) -> page.Section | None:
    panels = []
    for i, env in enumerate(environments):
        rows = table[env["env"]]
        known = [row for row in rows if row.model == "reference"]
        open_ = [row for row in known if row.privileged][:1]
        fair = [row for row in known if not row.privileged]
        shown = [row for row in rows if row.model != "reference"] + open_ + fair[:1] + fair[1:][-1:]
        if len(rows[0].curve.position) > 1:
            panels.append(page.figure(figures.learning(f"learn{i}", shown), escape(env["env"]), ""))
    if not panels:
        return None
    text = PROSE["learning"]
    return page.Section("learning", "Learning within a lifetime", text + page.panels(panels))


def _replayed(found: Sequence[Record], environments: Sequence[Record]) -> page.Section | None:
    parts = []
    for env in environments:
        num_lifetimes = [r for r in found if r["kind"] == "replay" and r["env"] == env["env"]]
        if not num_lifetimes:
            continue
        told = recorded_lifetimes.draw(num_lifetimes[0], env)[1]
        parts.append(f"<h3>{escape(env['env'])}</h3><p>{escape(told)}</p>")
        ours = [trajectory for trajectory in num_lifetimes if trajectory["model"] != "reference"]
        known = [trajectory for trajectory in num_lifetimes if trajectory["model"] == "reference"]
        parts.append(_drawn(ours or known, env))
        if ours and known:
            names = ", ".join(escape(trajectory["agent"]) for trajectory in known)
            parts.append(f"<details><summary>The references in the same task: {names}</summary>")
            parts.append(_drawn(known, env) + "</details>")
    if not parts:
        return None
    text = PROSE["num_lifetimes"]
    return page.Section("num_lifetimes", "One lifetime of each agent", text + "".join(parts))


def _drawn(num_lifetimes: Sequence[Record], env: Record) -> str:
    shown = []
    for trajectory in num_lifetimes:
        total = comparison.total(sum(trajectory["trajectory"]["score"]))
        chart = recorded_lifetimes.draw(trajectory, env)[0]
        shown.append(page.figure(chart, page.agent(trajectory["agent"], trajectory["model"]), f"Total score {total}."))
    return f'<div class="lives">{"".join(shown)}</div>'


def _addressing(found: Sequence[Record], table: dict[str, list[Standing]]) -> page.Section | None:
    differences = {(r["env"], r["agent"], r["other"]): r for r in found if r["kind"] == "difference"}
    rows = []
    for env, standing in table.items():
        by_name = {row.agent: row for row in standing}
        cells, dense = by_name.get("recurrent_cells"), by_name.get("recurrent")
        if cells is None or dense is None or not (cells.developed_on == dense.developed_on == env):
            continue
        apart = comparison.find_difference(differences, env, cells.agent, dense.agent)
        if apart is None:
            apart = comparison.apart_by(cells.score, dense.score)
        rows.append(
            [
                escape(env),
                _evolved(cells),
                _evolved(dense),
                page.difference(apart),
            ]
        )
    if not rows:
        return None
    text = PROSE["addressing"]
    text += page.table(
        "Shared against dense, each evolved in the environment shown, with the 95 % interval of the difference",
        ["env", "recurrent_cells", "recurrent", "cells − dense"],
        rows,
        numeric=(1, 2, 3),
    )
    return page.Section("addressing", "What shared addressing buys", text)


def _evolved(row: Standing) -> str:
    effort = f"{row.genome_size:,} numbers, {amount(row.development_steps)} steps"
    return f"{page.score(row.score)}<br><small>{effort}</small>"


def _bounded(
    found: Sequence[Record], environments: Sequence[Record], table: dict[str, list[Standing]]
) -> page.Section | None:
    rows, above = [], []
    for env in environments:
        standing = table[env["env"]]
        ours = next((row for row in standing if row.model != "reference"), None)
        oracle = next((row for row in standing if row.privileged), None)
        ceiling = comparison.ceilings(found).get(env["env"])
        if ours is None or (oracle is None and ceiling is None):
            continue
        most = ceiling[1] if ceiling else oracle.score.mean if oracle else math.inf
        if ceiling is None and ours.score.low > most:
            above.append(env["env"])
        rows.append(
            [
                escape(env["env"]),
                number(ceiling[1]) if ceiling else "not known",
                page.score(oracle.score) if oracle else "–",
                f"{page.agent(ours.agent, ours.model)}<br>{page.score(ours.score)}",
                "above it" if env["env"] in above else number(most - ours.score.mean),
            ]
        )
    if not rows:
        return None
    exact = any(env["env"] in comparison.ceilings(found) for env in environments)
    text = (PROSE["bayes_optimal"] if exact else "") + PROSE["oracle"]
    text += page.table(
        "What is left, in score per lifetime: to the Bayes-optimal score where it is known, else to the oracle",
        ["env", "Bayes-optimal", "oracle", "best of ours", "left"],
        rows,
        numeric=(1, 2, 4),
    )
    if above:
        text += Template(PROSE["no_ceiling"]).substitute(environments=escape(", ".join(above)))
    return page.Section("bounds", "What is bounded", text)


def _not_shown(found: Sequence[Record], table: dict[str, list[Standing]]) -> page.Section:
    evolved = [row for rows in table.values() for row in rows if row.model == "evolution"]
    fewest = min((len(row.seeds) for row in evolved), default=0)
    models = {row.model for rows in table.values() for row in rows}
    limits = PROSE["limits"]
    items = list(limits["always"])
    if any(comparison.published_lines(r) for r in found if r["kind"] == "env"):
        items.insert(0, limits["published"])
    if "code" in models:
        items += limits["code"]
    if "evolution" in models:
        items += limits["evolution"]
    if evolved and fewest < 5:
        items.insert(
            0,
            f"Evolved agents were developed from {'one seed' if fewest == 1 else f'{fewest} seeds'} in some environments. "
            "The spread between seeds is hardly known there, and an interval over tasks does not contain it.",
        )
    return page.Section(
        "limits", "What this does not show", "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"
    )


def _repeat(study: Record, times: dict[str, float]) -> page.Section:
    versions = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in study["versions"].items())
    total = sum(times.values())
    took = f"It took {total / 60:.1f} minutes here." if total else ""
    text = Template(PROSE["repeat"]).substitute(took=took, seed=study["seed"])
    text += f"""
<dl class="facts"><div><dt>seed</dt><dd>{study["seed"]}</dd></div><div><dt>versions</dt><dd>{versions}</dd></div>
<div><dt>digest of spec and seed</dt><dd><code>{escape(study.get("digest", ""))[:16]}</code></dd></div></dl>
<details><summary>The spec</summary><pre><code>{escape(study["spec"].strip())}</code></pre></details>
"""
    return page.Section("repeat", "Spec, versions, seed: how to repeat this", text)
