"""The page of a study: written from records alone, with conclusions that follow them."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.errors import BadInput
from ontogeny.report import charts
from ontogeny.runs import formats
from ontogeny.runs.folder import RunDescription, write_spec
from ontogeny.runs.records import RECORDS_FILE, repair_records
from ontogeny.stats import Interval
from ontogeny.studies import attribution_table, figures
from ontogeny.studies import page as study_page
from ontogeny.studies.records import read_records

pytestmark = pytest.mark.usefixtures("reused_figures")

BANDIT = {"num_arms": 5, "num_pulls": 10}
CHROMIUM = shutil.which("chromium")
VOID = {"meta", "br", "link", "hr", "img", "input"}


def evaluation(env, agent, approach, mean, se=0.01, seed=0, steps=0, points=10, **more):
    """A development and an evaluation of it, made by hand."""
    development = {
        "id": f"development/{env}/{agent}/{seed}",
        "kind": "development",
        "agent": agent,
        "approach": approach,
        "train_env": env,
        "seed": seed,
        "num_parameters": 616,
        "num_training_env_steps": steps,
    }
    curve = {
        "unit": "step",
        "position": list(range(1, points + 1)),
        "mean": [mean / points * (0.8 + 0.4 * i / points) for i in range(points)],
        "standard_error": [0.01] * points,
    }
    measured = {
        "id": f"evaluation/{env}/{agent}/{seed}",
        "kind": "evaluation",
        "agent": agent,
        "agent_spec": agent,
        "approach": approach,
        "env": env,
        "train_env": env,
        "development_id": development["id"],
        "seed": seed,
        "mode": "frozen",
        "num_tasks": 4000,
        "mean": mean,
        "standard_error": se,
        "curve": curve,
    }
    return [development, measured | more]


def environment(name, plugin, settings, **more):
    defaults = {
        "num_steps": 10,
        "horizon": 1,
        "num_actions": 5,
        "num_observations": 1,
        "description": "An environment.",
    }
    return (
        {"id": f"environment/{name}", "kind": "environment", "env": name, "plugin": plugin, "settings": settings}
        | defaults
        | more
    )


def recorded_lifetime(name, agent, approach, task, **trajectory):
    record = {
        "id": f"recorded_lifetime/{name}/{agent}",
        "kind": "recorded_lifetime",
        "env": name,
        "agent": agent,
        "approach": approach,
    }
    return record | {"task": task, "trajectory": trajectory}


def small(code=162.5, evolution=161.5):
    """The records of a small study: a bandit, a random MDP, a grid, the two-step task."""
    records = [
        environment("bandit", "bandit", BANDIT),
        *evaluation("bandit", "random", "baseline", 5.0),
        *evaluation("bandit", "oracle", "baseline", 8.3, privileged=True),
        *evaluation("bandit", "model_based", "ml_code", 6.66, mode="online"),
        *evaluation("bandit", "recurrent_cells", "evolution", 6.65, steps=10**7),
        *evaluation("bandit", "recurrent_cells", "evolution", 6.63, steps=10**7, seed=1),
        *evaluation("bandit", "recurrent", "evolution", 6.2, steps=10**7),
        {
            "id": "upper_bound/bandit",
            "kind": "upper_bound",
            "env": "bandit",
            "name": "Bayes-optimal",
            "value": 6.66,
            "method": "exact",
        },
        recorded_lifetime(
            "bandit",
            "model_based",
            "ml_code",
            {"probabilities": [0.1, 0.9, 0.4, 0.5, 0.3]},
            observation=[0] * 10,
            first=[True] * 10,
            action=[0, 1, 1, 1, 2, 1, 1, 1, 1, 1],
            score=[0, 1, 1, 0, 0, 1, 1, 1, 1, 1],
            discount=[0] * 10,
        ),
        environment(
            "MDP", "random_mdp", {"num_states": 10, "num_actions": 5, "horizon": 10, "num_episodes": 10}, horizon=10
        ),
        *evaluation("MDP", "model_based", "ml_code", code, 0.2),
        *evaluation("MDP", "recurrent_cells", "evolution", evolution, 0.2, steps=4 * 10**7),
        {
            "id": "difference/MDP/model_based/recurrent_cells",
            "kind": "difference",
            "env": "MDP",
            "agent": "model_based",
            "other_agent": "recurrent_cells",
            "mean": code - evolution,
            "standard_error": 0.1,
            "num_tasks": 4000,
        },
        recorded_lifetime(
            "MDP",
            "recurrent_cells",
            "evolution",
            {"means": [[float(a) for a in range(5)]] * 10},
            observation=[i % 10 for i in range(20)],
            first=[i % 10 == 0 for i in range(20)],
            action=[i % 5 for i in range(20)],
            score=[float(i % 3) for i in range(20)],
            discount=[1] * 20,
        ),
        environment("grid", "foraging", {"size": 3, "horizon": 4, "num_episodes": 2}, horizon=4),
        *evaluation("grid", "model_based", "ml_code", 1.0),
        recorded_lifetime(
            "grid",
            "model_based",
            "ml_code",
            {
                "walls": [False] * 4 + [True] + [False] * 4,
                "thorns": [False] * 9,
                "food": 1,
                "water": 2,
                "home": 8,
                "start": 0,
            },
            observation=[0, 1, 10, 2, 0, 1, 11, 29],
            first=[True, False, False, False, True, False, False, False],
            action=[1, 1, 1, 1, 1, 1, 2, 2],
            score=[0.95, -0.05, -0.05, 0.95, 0.95, 0.95, -0.05, 0.95],
            discount=[1, 1, 1, 1, 1, 1, 1, 0],
        ),
        environment("two-step", "two_step", {"num_trials": 3}, horizon=2, num_actions=2),
        *evaluation("two-step", "model_based", "ml_code", 1.5),
        recorded_lifetime(
            "two-step",
            "model_based",
            "ml_code",
            {"common_place": [0, 1]},
            observation=[0, 1, 0, 2, 0, 1],
            first=[True, False] * 3,
            action=[0, 0, 0, 0, 1, 1],
            score=[0, 1, 0, 0, 0, 1],
            discount=[1, 0] * 3,
        ),
    ]
    unique = {record["id"]: record for record in records}
    return list(unique.values())


SPEC = {
    "title": "A small <study>",
    "question": "Which is ahead?",
    "seed": 3,
    "digest": "0123456789abcdef0123",
    "text": 'title = "A small <study>"',
}


def write_study(folder, records, **spec):
    folder.mkdir(exist_ok=True)
    planned = {"planned_ids": [record["id"] for record in small()]}
    description = RunDescription(formats.STUDY, SPEC | spec, {}, {"jax": "0.10.2"}, planned)
    write_spec(folder, description, {})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / RECORDS_FILE).write_text(lines, encoding="utf-8")
    return folder


def page_of(folder, records):
    return study_page.write(write_study(folder, records)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("report") / "s", small())


def answer_in(page):
    records = re.search(r'<p class="answer">(.*?)</p>', page)
    assert records is not None
    return re.sub(r"<[^>]+>", "", records.group(1))


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects ids, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.links += [attributes[key] for key in ("href", "src", "xlink:href") if key in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_the_set_up_and_the_results(small_page):
    page = small_page
    for text in ("A small &lt;study&gt;", "Which is ahead?", "6.66", "162.5", "RL²", "Bayes-optimal", "jax 0.10.2"):
        assert text in page
    for title in (
        "Agents and environments",
        "Published scores and ours",
        "What development costs",
        "Learning within a lifetime",
    ):
        assert title in page
    for title in (
        "One lifetime of each agent",
        "What weight sharing contributes",
        "Distance to the upper bound",
        "does not show",
    ):
        assert title in page
    assert "What is missing" not in page


def test_the_page_is_well_formed_and_self_contained(small_page):
    page = small_page
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "img", "iframe")]
    assert "url(http" not in page and "@import" not in page
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)


def test_the_page_is_accessible(small_page):
    reader = Reader()
    reader.feed(small_page)
    tags = reader.tags
    assert [tag for tag, _ in tags if tag == "h1"] == ["h1"]
    assert all(attributes.get("aria-label") for tag, attributes in tags if tag == "svg")
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) > 3
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    assert sum(tag == "figure" for tag, _ in tags) == sum(tag == "figcaption" for tag, _ in tags) > 5


def test_the_same_records_give_the_same_bytes(small_page, tmp_path):
    assert page_of(tmp_path / "again", small()) == small_page


def test_colors_are_variables_for_light_and_dark_pages(small_page):
    body = small_page.partition("</style>")[2]
    assert "var(--evolution)" in body and "var(--ml-code)" in body
    assert not re.findall(r"(?:fill|stroke): #(?!000000)[0-9a-f]{6}", body)


def test_the_conclusions_follow_the_records(tmp_path):
    ahead = answer_in(page_of(tmp_path / "a", small(code=162.5, evolution=160.5)))
    assert "ML code scores higher in 1 of 2" in ahead and "ML code scores 2.00 ± 0.10 more" in ahead
    behind = answer_in(page_of(tmp_path / "b", small(code=150.0, evolution=160.5)))
    assert "evolution in 1" in behind and "evolution scores 10.50 ± 0.10 more" in behind
    assert "below the best in 1" in behind and "scores 150.00 ± 0.20 in MDP, RL² 156.2" in behind
    level = answer_in(page_of(tmp_path / "c", small(code=160.6, evolution=160.5)))
    assert "and in 2 no difference is claimed" in level


def test_a_number_in_the_conclusions_follows_its_record(tmp_path):
    records = small()
    for record in records:
        if record["id"] == "development/MDP/recurrent_cells/0":
            record["num_training_env_steps"] = 123_000_000
    assert "123 million environment steps" in answer_in(page_of(tmp_path / "s", records))


def test_missing_records_are_listed(tmp_path):
    records = [record for record in small() if record["id"] != "evaluation/MDP/model_based/0"]
    page = page_of(tmp_path / "s", records)
    assert "This study is not complete" in page and "evaluation/MDP/model_based/0" in page
    only_head = page_of(tmp_path / "t", [])
    assert "No measurement has been recorded yet" in only_head


@pytest.mark.parametrize(
    "kind",
    [
        "environment",
        "development",
        "evaluation",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("difference", "upper_bound", "recorded_lifetime")),
    ],
)
def test_a_page_is_written_with_any_record_missing(tmp_path, kind):
    for i, record in enumerate(small()):
        if record["kind"] == kind and "grid" not in record["id"] and "two-step" not in record["id"]:
            records = small()
            del records[i]
            page = page_of(tmp_path / "s", records)
            assert "This study is not complete" in page
            break


def test_damaged_records_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"holds no run|cannot be read|there is no run"):
        study_page.write(tmp_path)
    folder = write_study(tmp_path / "s", small())
    path = folder / RECORDS_FILE
    path.write_text("{]\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 1, is damaged"):
        study_page.write(folder)
    path.write_text('{"id": "a", "kind": "upper_bound", "env": "w"}\n', encoding="utf-8")
    with pytest.raises(BadInput, match="line 1, is damaged: the upper_bound record lacks 'name'"):
        study_page.write(folder)
    write_study(folder, [small()[0], small()[0]])
    with pytest.raises(BadInput, match="occurs twice"):
        study_page.write(folder)


def test_an_incomplete_last_line_is_left_out(tmp_path):
    folder = write_study(tmp_path / "s", small())
    path = folder / RECORDS_FILE
    complete = path.read_bytes()
    with path.open("a") as file:
        file.write('{"id": "torn", "ki')
    assert read_records(folder) == small()
    repair_records(path)
    assert path.read_bytes() == complete


def test_a_page_is_written_without_jax(tmp_path):
    folder = write_study(tmp_path / "s", small())
    code = (
        "import sys; from ontogeny import studies; studies.write_page(sys.argv[1]); "
        "sys.exit(any(name == 'jax' or name.startswith('ontogeny.rollouts') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


def crowded():
    """The records of a study whose agents have similar scores, costs and ends of their curves, and long names."""
    groups = {
        "various": [
            ("short", "evolution", 12.3, 51200),
            ("long", "evolution", 14.1, 204800),
            ("longer", "evolution", 14.12, 409600),
            ("the longest search of this study", "evolution", 14.15, 819200),
            ("model_based", "ml_code", 14.11, 0),
            ("model_based, no bonus", "ml_code", 14.08, 0),
            ("thompson", "baseline", 12.87, 0),
        ],
        "similar": [(f"variant {i}", "evolution", 14 + 0.01 * i, 204800) for i in range(6)],
        "equal": [(f"copy {i}", "evolution", 14.0, 204800) for i in range(3)],
    }
    records = []
    for env, agents in groups.items():
        records.append(environment(env, "bandit", {"num_arms": 5, "num_pulls": 20}))
        for name, approach, mean, steps in agents:
            records += evaluation(env, name, approach, mean, steps=steps)
    return records


def search_lengths(approach, mean):
    """The records of a study of two agents that share a way of development."""
    return [
        environment("five arms", "bandit", {"num_arms": 5, "num_pulls": 20}),
        *evaluation("five arms", "short", approach, 12.0, steps=51200),
        *evaluation("five arms", "long", approach, 12.0 + mean, steps=204800),
        {
            "id": "difference/five arms/long/short",
            "kind": "difference",
            "env": "five arms",
            "agent": "long",
            "other_agent": "short",
            "mean": mean,
            "standard_error": 0.1,
            "degrees_of_freedom": 1000.0,
            "num_tasks": 4000,
        },
    ]


@pytest.mark.parametrize(("low", "high", "triangles"), [(0.5, 2.5, []), (-5, 2.5, ["<"]), (-5, 9, ["<", ">"])])
def test_an_interval_that_is_cut_at_the_axis_ends_in_a_triangle(low, high, triangles):
    with charts.new_panel() as (_, axes):
        figures._draw_score(axes, 0, ("agent", Interval(1.0, 0.5, low, high, 10), "evolution"), 0.0, 3.0)
        assert [line.get_marker() for line in axes.lines if line.get_marker() in ("<", ">")] == triangles


@pytest.mark.parametrize("approach", ["evolution", pytest.param("baseline", marks=pytest.mark.slow)])
def test_a_sentence_and_a_table_state_the_differences_between_agents_of_one_approach(tmp_path, approach):
    page = page_of(tmp_path / "a", search_lengths(approach, 1.5))
    assert (
        "In five arms, on the same held-out tasks, long scores 1.50 more per lifetime than short (95 % interval 1.304 "
        "to 1.696)." in answer_in(page)
    )
    table = page[page.index('id="differences"') :].partition("</table>")[0]
    cells = re.sub(r"<[^>]+>", " ", table.partition("<tbody>")[2]).split()
    assert " ".join(cells) == "five arms long short +1.50 1.304 to 1.696 long"
    level = page_of(tmp_path / "b", search_lengths(approach, 0.1))
    assert "long and short do not differ significantly (95 % interval −0.096 to 0.296 of the difference)" in answer_in(
        level
    )
    assert "no significant difference" in level
    page = page_of(tmp_path / "d", search_lengths(approach, 0.25))  # the interval excludes zero
    sentence = "long and short differ by less than three standard errors, so no difference is claimed"
    assert sentence in answer_in(page) and "no significant difference" not in page
    assert "not claimed: less than three standard errors" in page
    reverse = page_of(tmp_path / "c", search_lengths(approach, -1.5))
    assert "short scores 1.50 more per lifetime than long" in answer_in(reverse)


def test_of_many_pairs_the_page_shows_those_of_developed_agents_and_unfolds_the_rest(tmp_path):
    page = page_of(tmp_path / "s", crowded())
    assert "of all 21 pairs of agents" in answer_in(page)
    table, *folded = page[page.index('id="differences"') :].partition("</section>")[0].split("<details>")
    assert table.count("<tr>") == 1 + 15 + 15 + 3 and "thompson" not in table
    assert [part.count("<tr>") for part in folded] == [1 + 21] and "thompson" in folded[0]


def test_a_study_of_single_agents_has_no_difference_to_report(tmp_path):
    records = [environment("five arms", "bandit", BANDIT | {"num_pulls": 20})]
    page = page_of(tmp_path / "s", records + evaluation("five arms", "random", "baseline", 5.0))
    assert answer_in(page) == "Each environment of this study has one agent, so there is no difference to report."
    assert 'id="differences"' not in page


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 20)), min_size=1, max_size=12))
def test_labels_along_one_axis_do_not_overlap_and_move_only_where_they_must(boxes):
    boxes.sort()
    centers, heights = [center for center, _ in boxes], [height for _, height in boxes]
    positions = charts.spread_positions(centers, heights)
    ends = [(y - height / 2, y + height / 2) for y, height in zip(positions, heights, strict=True)]
    assert all(upper[0] >= lower[1] - 1e-6 for lower, upper in itertools.pairwise(ends))
    starts = [(y - height / 2, y + height / 2) for y, height in boxes]
    if all(upper[0] > lower[1] for lower, upper in itertools.pairwise(starts)):
        assert positions == pytest.approx(centers)
    limited = charts.spread_positions(centers, heights, limit=100)
    assert all(y + height / 2 <= 100 + 1e-6 for y, height in zip(limited, heights, strict=True))


OVERLAPPING_LABELS = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const labels = [...svg.querySelectorAll("text")].filter((label) => label.textContent.trim());
  const boxes = labels.map((label) => label.getBoundingClientRect());
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.25 * Math.min(a.height, b.height);
  const outside = (a) => a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1
    || a.bottom > frame.bottom + 1;
  return boxes.flatMap((a, i) => [
    ...boxes.slice(0, i).flatMap((b, j) => overlap(a, b) ? [[labels[i].textContent, labels[j].textContent]] : []),
    ...(outside(a) ? [[labels[i].textContent, "the edge"]] : []),
  ]);
})"""


if CHROMIUM:  # a browser is no dependency: where there is none, there is nothing to look with

    @pytest.mark.slow
    @pytest.mark.parametrize("records", [small, crowded])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_labels_of_charts_do_not_overlap(tmp_path, records, width):
        from playwright.sync_api import sync_playwright

        path = study_page.write(write_study(tmp_path / "s", records()))
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
            page.goto(f"file://{path}")
            overlaps = page.evaluate(OVERLAPPING_LABELS)
            browser.close()
        assert overlaps == []

    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_the_page_fits_its_window_and_makes_no_request(tmp_path, scheme, width):
        from playwright.sync_api import sync_playwright

        path = study_page.write(write_study(tmp_path / "s", small()))
        requests, messages = [], []
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page = context.new_page()
            page.on(
                "request", lambda request: requests.append(request.url) if not request.url.startswith("file:") else None
            )
            page.on("console", lambda message: messages.append(message.text))
            page.goto(f"file://{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ink, paper = (
                page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
            )
            browser.close()
        assert requests == [] and messages == []
        bright = [sum(int(value) for value in re.findall(r"\d+", color)[:3]) for color in (ink, paper)]
        assert (bright[0] < bright[1]) == (scheme == "light")


def test_the_page_says_of_which_development_an_attribution_is():
    estimate = {"mean": 1.0, "low": 0.5, "high": 1.5}
    cells = dict.fromkeys(attribution_table.CELLS, estimate)
    estimates = {"summary": "none", "shares": None, "cells": cells, "gain": estimate}
    record = {"kind": "attribution", "env": "walk", "agent": "recurrent", "approach": "evolution", "seed": 3}
    section = attribution_table.render([record | {"verdict": "activations", "attribution": estimates}])
    assert "Each row is about one development, that of the agent's first seed" in section
