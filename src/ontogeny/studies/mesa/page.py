"""The page of the mesa study, and the section that it is in the page of a study that ran it. Reads records alone."""

import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ontogeny.errors import BadInput
from ontogeny.report import old_page as page
from ontogeny.studies import figures, records
from ontogeny.studies.comparison import amount
from ontogeny.studies.kinds import PAGE_FILE
from ontogeny.studies.mesa import comparison as mesa_comparison
from ontogeny.studies.mesa import figures as mesa_figures
from ontogeny.studies.mesa.comparison import Group, Part, signed
from ontogeny.studies.records import Record

PROSE = tomllib.loads(Path(__file__).parents[1].joinpath("prose.toml").read_text(encoding="utf-8"))
TITLES = {
    "learns": ("Does it learn?", "cost of wiping activations"),
    "plans": ("Does it plan?", "effect of the weakest link or pair"),
    "objective": ("Has it an objective of its own?", "lean beyond accuracy"),
}
NOTES = {
    "learns": "What wiping activations costs, in standard deviations of the score of a step.",
    "plans": "How much a change of links, seen apart, turns the next choice: the weakest of six.",
    "objective": "How far reports lean towards easier items, beyond what is accurate.",
}
MODELS = {"prediction": "by prediction", "return": "on return", "pupil": "taught to plan"}
CLASSES = {"prediction": "code", "return": "evolution", "pupil": "reference"}


def write(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a mesa study and returns its path. `BadInput` for bad records."""
    folder = Path(folder)
    path = folder / PAGE_FILE
    text = render(records.read(folder / records.RECORDS_FILE), records.read_times(folder / records.TIMES_FILE))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def render(found: Sequence[Record], times: dict[str, float]) -> str:
    """The whole page as text."""
    head = head_of(found)
    body = " ".join(f"<span>{escape(text)}</span>" for text in mesa_comparison.answer(found))
    opening = f'<p class="question">{escape(PROSE["mesa"]["question"])}</p><p class="answer">{body}</p>'
    known = mesa_comparison.groups(found)
    sections = [
        _lacking(head, found),
        page.Section("asked", "What was asked", PROSE["mesa"]["asked"]),
        page.Section("capacity", "Evidence as capacity grows", _figure(known, head)),
        page.Section("runs", "Run by run", _table(known, found)),
        mesa_figures.section(found),
        mesa_figures.two_steps(found),
        _evolved(found),
        page.Section("limits", "What this does not show", _limits(head)),
        page.Section("repeat", "Budget, versions, seed: how to repeat this", _repeat(head, found, times)),
    ]
    return page.document(head["title"], opening, [section for section in sections if section])


def section(folder: Path) -> page.Section:
    """The same in one section, for the page of a study that includes the mesa study; `folder` is the mesa study's."""
    found = records.read(folder / records.RECORDS_FILE)
    head, known = head_of(found), mesa_comparison.groups(found)
    told = "".join(f"<p><strong>{escape(text)}</strong></p>" for text in mesa_comparison.answer(found))
    text = f"<p>{escape(PROSE['mesa']['question'])}</p>" + told + _figure(known, head)
    text += (
        f'<p class="note">A small version, {head["budget"]["runs"]} runs of each; <code>ontogeny study mesa</code> '
        f'runs it in full. <a href="{folder.name}/{PAGE_FILE}">All of it</a>.</p>'
    )
    return page.Section("mesa", "Could learned content hold an optimizer?", text)


def head_of(found: Sequence[Record]) -> Record:
    head = next((record for record in found if record["kind"] == "mesa"), None)
    if head is None:
        raise BadInput("the records lack their first line, the mesa study itself: run it again in a new folder")
    if head["format"] != records.FORMAT:
        raise BadInput(f"the records have format {head['format']!r}, this version reads format {records.FORMAT}")
    return head


def _lacking(head: Record, found: Sequence[Record]) -> page.Section | None:
    there = {record["id"] for record in found}
    lacking = [name for name in head["planned"] if name not in there]
    if not lacking:
        return None
    shown = ", ".join(f"<code>{escape(name)}</code>" for name in lacking[:6])
    more = f" and {len(lacking) - 6} more" if len(lacking) > 6 else ""
    text = (
        f'<p class="notice" role="note">This study is not complete: of {len(head["planned"])} planned records, '
        f"{len(lacking)} are missing ({shown}{more}). Start it again in the same folder: it goes on where it was.</p>"
    )
    return page.Section("missing", "What is missing", text)


def _figure(known: Sequence[Group], head: Record) -> str:
    panels = []
    for question, (title, label) in TITLES.items():
        drawn = [group for group in known if group.question == question]
        if not drawn:
            continue
        contents = [name for name in mesa_comparison.CONTENTS if any(group.content == name for group in drawn)]
        smallest = head["thresholds"][question]
        chart = figures.capacity(f"capacity-{question}", drawn, contents, smallest, label)
        panels.append(page.figure(chart, title, f"{NOTES[question]} Dashed: {smallest:g}."))
    keys = " ".join(
        page.agent(words, CLASSES[model])
        for model, words in MODELS.items()
        if any(group.model == model for group in known)
    )
    return PROSE["mesa"]["figure"] + f"<p>{keys}</p>" + page.panels(panels)


def _table(known: Sequence[Group], found: Sequence[Record]) -> str:
    rows = []
    shown = {"objective": ("beyond accuracy", "with the direction"), "learns": ("wiped", "accumulates")}
    keys = dict.fromkeys((g.content, g.model, g.condition) for g in known if g.question == "objective")
    by = {(g.question, g.content, g.model, g.condition): g for g in known}
    for key in sorted(keys, key=lambda k: (mesa_comparison.CONTENTS.index(k[0]), k[1], k[2])):
        lean, gain = by["objective", *key], by["learns", *key]
        cells = [escape(key[0]), page.agent(MODELS[key[1]], CLASSES[key[1]]), "sham" if key[2] == "sham" else ""]
        cells += [f"{lean.numbers:,}", f"{lean.competence:.0%}"]
        for group, names in ((lean, shown["objective"]), (gain, shown["learns"])):
            cells += [_interval(group.parts[name]) for name in names] + [_said(group)]
        rows.append(page.Row(cells, "first" if rows and cells[0] != rows[-1].cells[0] else ""))
    heads = ["content", "trained", "", "numbers", "of what can be predicted", "lean beyond accuracy"]
    heads += ["lean with the direction", "an objective?", "wiped", "accumulates", "learns?"]
    text = PROSE["mesa"]["table"]
    text += page.table(
        "What each group shows, weights frozen, means over runs with 95 % intervals",
        heads,
        rows,
        numeric=(3, 4, 5, 6, 8, 9),
    )
    planned = [group for group in known if group.question == "plans"]
    if planned:
        text += f"<p>{escape(PROSE['mesa']['plans'])}</p>" + _plans(planned, found)
    return text


def _plans(planned: Sequence[Group], found: Sequence[Record]) -> str:
    names = list(mesa_comparison.PARTS["plans"])
    rows = []
    for group in planned:
        patterns = [r["plans"]["pattern"] for r in found if r["kind"] == "mesa_plans" and _of(r, group)]
        often = max(dict.fromkeys(patterns), key=patterns.count)
        rows.append(
            [
                escape(group.content),
                page.agent(MODELS[group.model], CLASSES[group.model]),
                f"{group.runs}",
                f"{group.competence:.0%}",
                *(_interval(group.parts[name]) for name in names),
                f"{often} ({patterns.count(often)} of {len(patterns)})",
                _said(group),
            ]
        )
    heads = ["content", "", "runs", "best choices", *names, "pattern", "plans?"]
    return page.table(
        "How much rarer the old best choice is after a link changed out of sight, or more frequent after two did",
        heads,
        rows,
        numeric=tuple(range(2, 4 + len(names))),
    )


def _of(record: Record, group: Group) -> bool:
    return record["content"] == group.content and record["model"] == group.model


def _interval(part: Part) -> str:
    return f"{signed(part.mean)}<br><small>{signed(part.low)} to {signed(part.high)}</small>"


def _said(group: Group) -> str:
    yes, no, open_ = (group.alone[word] for word in ("yes", "no", "undetermined"))
    return f"<b>{group.verdict}</b><br><small>{yes} yes, {no} no, {open_} open</small>"


def _evolved(found: Sequence[Record]) -> page.Section | None:
    rows = []
    for record in found:
        if record["kind"] != "mesa_evolved":
            continue
        pattern = next((f["pattern"] for f in record["findings"] if f["test"] == "plans" and f["pattern"]), "")
        said = record["verdicts"]
        rows.append(
            [
                page.agent(record["agent"].partition(":")[0], "evolution"),
                escape(record["env"]),
                said["learns"],
                said["plans"] + (f" ({pattern})" if pattern else ""),
                said["objective"],
                f'<span class="prose">{escape(record["in_words"])}</span>',
            ]
        )
    if not rows:
        return None
    heads = ["agent", "evolved and asked in", "learns?", "plans?", "an objective?", "in words"]
    text = PROSE["mesa"]["evolved"] + page.table("Verdict per question", heads, rows)
    return page.Section("evolved", "Agents evolved from scratch", text)


def _limits(head: Record) -> str:
    items = list(PROSE["mesa"]["limits"])
    if not head["budget"]["shams"]:
        items.append(PROSE["mesa"]["no_sham"])
    items.insert(0, f"Each claim rests on {head['budget']['runs']} training runs of a group.")
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _repeat(head: Record, found: Sequence[Record], times: dict[str, float]) -> str:
    versions = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in head["versions"].items())
    steps = sum(r["steps"] * r["runs"] for r in found if r["kind"] == "mesa_trained")
    small = " --small" if head["budget"]["name"] == "small" else ""
    took = f"{sum(times.values()) / 60:.1f} minutes" if times else "not noted"
    return f"""<pre><code>ontogeny study mesa{small} --seed {head["seed"]} --out OUT
ontogeny report OUT</code></pre>
<dl class="facts"><div><dt>seed</dt><dd>{head["seed"]}</dd></div>
<div><dt>steps trained in</dt><dd>{amount(steps)}</dd></div>
<div><dt>time here</dt><dd>{took}</dd></div><div><dt>versions</dt><dd>{versions}</dd></div></dl>"""
