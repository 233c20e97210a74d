"""The report: one page from records alone, the same bytes for the same records, and an answer that follows them."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from ontogeny.errors import BadInput
from ontogeny.studies import page as study_page
from ontogeny.studies import records

BANDIT = {"num_arms": 5, "num_pulls": 10}
CHROMIUM = shutil.which("chromium")
VOID = {"meta", "br", "link", "hr", "img", "input"}


def evaluation(env, agent, model, mean, se=0.01, seed=0, steps=0, points=10, **more):
    """A development and an evaluation of it, made by hand."""
    development = {
        "id": f"development/{env}/{agent}/{seed}",
        "kind": "development",
        "agent": agent,
        "model": model,
        "developed_on": env,
        "seed": seed,
        "genome_size": 616,
        "development_steps": steps,
    }
    curve = {
        "unit": "step",
        "position": list(range(1, points + 1)),
        "mean": [mean / points * (0.8 + 0.4 * i / points) for i in range(points)],
        "se": [0.01] * points,
    }
    measured = {
        "id": f"evaluation/{env}/{agent}/{seed}",
        "kind": "evaluation",
        "agent": agent,
        "text": agent,
        "model": model,
        "env": env,
        "developed_on": env,
        "development": development["id"],
        "seed": seed,
        "case": "offline",
        "num_tasks": 4000,
        "mean": mean,
        "se": se,
        "curve": curve,
    }
    return [development, measured | more]


def env(name, room, settings, **more):
    about = {"num_steps": 10, "horizon": 1, "num_actions": 5, "num_observations": 1, "help": "An environment."}
    return {"id": f"environment/{name}", "kind": "env", "env": name, "room": room, "settings": settings} | about | more


def replay(name, agent, model, task, **trajectory):
    said = {"id": f"replay/{name}/{agent}", "kind": "replay", "env": name, "agent": agent, "model": model}
    return said | {"task": task, "trajectory": trajectory}


def small(code=162.5, evolution=161.5):
    """The records of a small study: a bandit, a random MDP, a grid, the two-step task."""
    found = [
        env("bandit", "bandit", BANDIT),
        *evaluation("bandit", "random", "reference", 5.0),
        *evaluation("bandit", "oracle", "reference", 8.3, privileged=True),
        *evaluation("bandit", "model_based", "code", 6.66, case="online"),
        *evaluation("bandit", "recurrent_cells", "evolution", 6.65, steps=10**7),
        *evaluation("bandit", "recurrent_cells", "evolution", 6.63, steps=10**7, seed=1),
        *evaluation("bandit", "recurrent", "evolution", 6.2, steps=10**7),
        {
            "id": "bound/bandit",
            "kind": "bound",
            "env": "bandit",
            "name": "Bayes-optimal",
            "value": 6.66,
            "how": "exact",
        },
        replay(
            "bandit",
            "model_based",
            "code",
            {"probabilities": [0.1, 0.9, 0.4, 0.5, 0.3]},
            observation=[0] * 10,
            first=[True] * 10,
            action=[0, 1, 1, 1, 2, 1, 1, 1, 1, 1],
            score=[0, 1, 1, 0, 0, 1, 1, 1, 1, 1],
            discount=[0] * 10,
        ),
        env("MDP", "random_mdp", {"num_states": 10, "num_actions": 5, "horizon": 10, "num_episodes": 10}, horizon=10),
        *evaluation("MDP", "model_based", "code", code, 0.2),
        *evaluation("MDP", "recurrent_cells", "evolution", evolution, 0.2, steps=4 * 10**7),
        {
            "id": "difference/MDP/model_based/recurrent_cells",
            "kind": "difference",
            "env": "MDP",
            "agent": "model_based",
            "other": "recurrent_cells",
            "mean": code - evolution,
            "se": 0.1,
            "num_tasks": 4000,
        },
        replay(
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
        env("grid", "foraging", {"size": 3, "horizon": 4, "num_episodes": 2}, horizon=4),
        *evaluation("grid", "model_based", "code", 1.0),
        replay(
            "grid",
            "model_based",
            "code",
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
        env("two-step", "two_step", {"num_trials": 3}, horizon=2, num_actions=2),
        *evaluation("two-step", "model_based", "code", 1.5),
        replay(
            "two-step",
            "model_based",
            "code",
            {"common_place": [0, 1]},
            observation=[0, 1, 0, 2, 0, 1],
            first=[True, False] * 3,
            action=[0, 0, 0, 0, 1, 1],
            score=[0, 1, 0, 0, 0, 1],
            discount=[1, 0] * 3,
        ),
    ]
    unique = {record["id"]: record for record in found}
    head = {
        "id": "study",
        "kind": "study",
        "format": 1,
        "title": "A small <study>",
        "question": "Which is ahead?",
        "seed": 3,
        "digest": "0123456789abcdef0123",
        "spec": 'title = "A small <study>"',
        "versions": {"jax": "0.10.2"},
        "planned": list(unique),
    }
    return [head, *unique.values()]


def put(folder, found):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in found)
    (folder / records.RECORDS_FILE).write_text(lines, encoding="utf-8")
    return folder


def page_of(folder, found):
    return study_page.write(put(folder, found)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("report") / "s", small())


def answer_in(page):
    found = re.search(r'<p class="answer">(.*?)</p>', page)
    assert found is not None
    return re.sub(r"<[^>]+>", "", found.group(1))


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects ids, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[key] for key in ("href", "src", "xlink:href") if key in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_what_was_asked_and_found(small_page):
    page = small_page
    for text in ("A small &lt;study&gt;", "Which is ahead?", "6.66", "162.5", "RL²", "Bayes-optimal", "jax 0.10.2"):
        assert text in page
    for title in (
        "What was asked",
        "published tables beside ours",
        "What development costs",
        "Learning within a lifetime",
    ):
        assert title in page
    for title in ("One lifetime of each agent", "What shared addressing buys", "What is bounded", "does not show"):
        assert title in page
    assert "What is missing" not in page


def test_the_page_is_well_formed_and_stands_alone(small_page):
    page = small_page
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "link", "img", "iframe")]
    assert "url(http" not in page and "@import" not in page
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)


def test_the_page_can_be_read_without_seeing_it(small_page):
    reader = Reader()
    reader.feed(small_page)
    tags = reader.tags
    assert [tag for tag, _ in tags if tag == "h1"] == ["h1"]
    assert all(given.get("aria-label") for tag, given in tags if tag == "svg")
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) > 3
    assert all(given.get("scope") in ("row", "col") for tag, given in tags if tag == "th")
    assert sum(tag == "figure" for tag, _ in tags) == sum(tag == "figcaption" for tag, _ in tags) > 5


def test_the_same_records_give_the_same_bytes(small_page, tmp_path):
    assert page_of(tmp_path / "again", small()) == small_page


def test_colours_are_variables_so_that_the_page_serves_light_and_dark(small_page):
    body = small_page.partition("</style>")[2]
    assert "var(--evolution)" in body and "var(--code)" in body
    assert not re.findall(r"(?:fill|stroke): #(?!000000)[0-9a-f]{6}", body)


def test_the_answer_follows_the_records_whichever_way_they_fall(tmp_path):
    ahead = answer_in(page_of(tmp_path / "a", small(code=162.5, evolution=160.5)))
    assert "code is ahead in 1 of 2" in ahead and "code ahead by 2.00 ± 0.10" in ahead
    behind = answer_in(page_of(tmp_path / "b", small(code=150.0, evolution=160.5)))
    assert "evolution in 1" in behind and "evolution ahead by 10.50 ± 0.10" in behind
    assert "below the best in 1" in behind and "150.00 ± 0.20 against RL²’s 156.2" in behind
    level = answer_in(page_of(tmp_path / "c", small(code=160.6, evolution=160.5)))
    assert "cannot be told apart in 2" in level


def test_every_number_of_the_answer_moves_with_its_record(tmp_path):
    found = small()
    for record in found:
        if record["id"] == "development/MDP/recurrent_cells/0":
            record["development_steps"] = 123_000_000
    assert "123 million steps" in answer_in(page_of(tmp_path / "s", found))


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    found = [record for record in small() if record["id"] != "evaluation/MDP/model_based/0"]
    page = page_of(tmp_path / "s", found)
    assert "This study is not complete" in page and "evaluation/MDP/model_based/0" in page
    only_head = page_of(tmp_path / "t", small()[:1])
    assert "No measurement has been recorded yet" in only_head


@pytest.mark.parametrize("kind", ["env", "development", "evaluation", "difference", "bound", "replay"])
def test_a_page_comes_out_whatever_record_is_missing(tmp_path, kind):
    for i, record in enumerate(small()):
        if record["kind"] == kind and "grid" not in record["id"] and "two-step" not in record["id"]:
            found = small()
            del found[i]
            page = page_of(tmp_path / "s", found)
            assert "This study is not complete" in page
            break


def test_records_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"there is no 'records.jsonl'"):
        study_page.write(tmp_path)
    folder = put(tmp_path / "s", small()[1:])
    with pytest.raises(BadInput, match="lack their first line"):
        study_page.write(folder)
    path = folder / records.RECORDS_FILE
    path.write_text("{]\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 1 is damaged"):
        study_page.write(folder)
    path.write_text('{"id": "a", "kind": "bound", "env": "w"}\n', encoding="utf-8")
    with pytest.raises(BadInput, match="line 1: the bound record lacks 'name'"):
        study_page.write(folder)
    put(folder, [small()[0], small()[1], small()[1]])
    with pytest.raises(BadInput, match="is there twice"):
        study_page.write(folder)


def test_a_line_without_its_end_is_left_out(tmp_path):
    folder = put(tmp_path / "s", small())
    path = folder / records.RECORDS_FILE
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write('{"id": "torn", "ki')
    assert records.read(path) == small()
    records.repair(path)
    assert path.read_bytes() == whole


def test_a_report_runs_nothing(tmp_path):
    folder = put(tmp_path / "s", small())
    code = (
        "import sys; from ontogeny import studies; studies.write_page(sys.argv[1]); "
        "sys.exit(any(name == 'jax' or name.startswith('ontogeny.stages') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


if CHROMIUM:  # a browser is no dependency: where there is none, there is nothing to look with

    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [390, 1280])
    def test_the_page_fits_its_window_and_asks_for_nothing_else(tmp_path, scheme, width):
        from playwright.sync_api import sync_playwright

        path = study_page.write(put(tmp_path / "s", small()))
        foreign, said = [], []
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page = context.new_page()
            page.on(
                "request", lambda request: foreign.append(request.url) if not request.url.startswith("file:") else None
            )
            page.on("console", lambda message: said.append(message.text))
            page.goto(f"file://{path}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ink, paper = (
                page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
            )
            browser.close()
        assert foreign == [] and said == []
        bright = [sum(int(value) for value in re.findall(r"\d+", colour)[:3]) for colour in (ink, paper)]
        assert (bright[0] < bright[1]) == (scheme == "light")
