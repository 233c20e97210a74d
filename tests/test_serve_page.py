"""The page in headless Chromium: three ways on, by keyboard, at phone width, with nothing from elsewhere."""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from ontogeny.server import keys
from ontogeny.server.store import Store
from serving import Live, shared_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("ONTOGENY_REQUIRE_CHROMIUM"))  # as `.ci/run` has it: then its absence is a failure
pytestmark = [
    pytest.mark.computes,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="there is no Chromium here"),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    run = shared_run(tmp_path_factory)
    with Live(tmp_path_factory.mktemp("page") / "state", "--alias", f"story={run}", "--online", "--bound", "2") as live:
        yield live


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None, "the page is to be tested, and there is no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_three_ways_on(live, browser, width, scheme, tmp_path):
    opening = f"The agent came to door {width}."
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, foreign, faults = context.new_page(), [], []
    page.on("request", lambda r: None if r.url.startswith(live.url) else foreign.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(live.url)
    expect(page.locator("#case")).to_have_text("learning", timeout=30_000)
    story = page.locator("#story")
    story.click()
    page.keyboard.type(opening)
    page.keyboard.press("Control+Enter")
    ways = page.locator(".way button")
    expect(ways).to_have_count(3)
    for index in range(3):
        expect(ways.nth(index)).to_be_enabled(timeout=60_000)
    texts = page.locator(".way p").all_inner_texts()
    assert len(set(texts)) == 3
    boxes = [page.locator(".way").nth(index).bounding_box() for index in range(3)]
    side_by_side = len({box["y"] for box in boxes}) == 1
    assert side_by_side == (width > 800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "ways.png", full_page=True)
    page.keyboard.press("Alt+2")
    assert story.input_value().startswith(opening) and len(story.input_value()) > 40
    expect(ways).to_have_count(0)
    page.locator("#undo").click()
    assert story.input_value() == opening
    expect(page.locator("#decisions tr").first).to_contain_text("learned", timeout=60_000)
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#back").click()
    expect(page.locator("#facts")).to_contain_text("0.00 %", timeout=20_000)
    expect(page.locator("#decisions tr").first).to_contain_text("rollback")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button,select,input,textarea')]"
        ".filter(e => !(e.labels?.length || e.innerText)).length"
    )
    assert unnamed == 0 and not foreign and not faults
    page.screenshot(path=tmp_path / "after.png", full_page=True)
    context.close()


def test_only_the_holder_of_an_admin_key_is_shown_the_way_back(live, browser):
    """The last test here: from the first key on, nobody comes in without one."""
    store = Store(live.state)
    plain, admin = keys.create(store, "anna")[1], keys.create(store, "me", admin=True)[1]
    store.close()
    page = browser.new_page()
    page.goto(live.url)
    expect(page.locator("#said")).to_contain_text("no key was given", timeout=30_000)
    for key, shown in ((plain, False), (admin, True)):
        page.locator("#key").fill(key)
        page.locator("#key").press("Tab")
        expect(page.locator("#case")).to_have_text("learning", timeout=30_000)
        expect(page.locator("#said")).to_have_text("")
        expect(page.locator("#back")).to_be_visible(visible=shown)
    page.close()
