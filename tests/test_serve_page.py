"""The writing page in headless Chromium: by keyboard, at the width of a phone, without requests to other hosts."""

import pytest
from playwright.sync_api import expect

from ontogeny.server import keys
from ontogeny.server.store import Store
from serving import NEEDS_CHROMIUM, ServerProcess, open_chromium, shared_run

pytestmark = [pytest.mark.computes, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    run, state_dir = shared_run(tmp_path_factory), tmp_path_factory.mktemp("page") / "state"
    with ServerProcess(state_dir, "--alias", f"story={run}", "--online", "--max-forgetting", "2") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_story_is_continued_and_learned(server, browser, width, scheme, tmp_path):
    opening = f"The agent came to door {width}."
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, foreign_urls, errors = context.new_page(), [], []
    page.on("request", lambda r: None if r.url.startswith(server.url) else foreign_urls.append(r.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    expect(page.locator("#mode")).to_have_text("learning", timeout=30_000)
    story = page.locator("#story")
    story.click()
    page.keyboard.type(opening)
    page.keyboard.press("Control+Enter")
    buttons = page.locator(".continuation button")
    expect(buttons).to_have_count(3)
    for index in range(3):
        expect(buttons.nth(index)).to_be_enabled(timeout=60_000)
    texts = page.locator(".continuation p").all_inner_texts()
    assert len(set(texts)) == 3
    boxes = [page.locator(".continuation").nth(index).bounding_box() for index in range(3)]
    side_by_side = len({box["y"] for box in boxes}) == 1
    assert side_by_side == (width > 800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "continuations.png", full_page=True)
    page.keyboard.press("Alt+2")
    assert story.input_value().startswith(opening) and len(story.input_value()) > 40
    expect(buttons).to_have_count(0)
    page.locator("#undo").click()
    assert story.input_value() == opening
    expect(page.locator("#decisions tr").first).to_contain_text("learned", timeout=60_000)
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#rollback").click()
    expect(page.locator("#details")).to_contain_text("0.00 %", timeout=20_000)
    expect(page.locator("#decisions tr").first).to_contain_text("rollback")
    num_unnamed = page.evaluate(
        "[...document.querySelectorAll('button,select,input,textarea')]"
        ".filter(e => !(e.labels?.length || e.innerText)).length"
    )
    assert num_unnamed == 0 and not foreign_urls and not errors
    page.screenshot(path=tmp_path / "after.png", full_page=True)
    context.close()


def test_only_an_admin_key_can_roll_back(server, browser):
    """The last test of this file: once a key exists, every request needs one."""
    store = Store(server.state_dir)
    plain, admin = keys.create_key(store, "anna")[1], keys.create_key(store, "me", admin=True)[1]
    store.close()
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#message")).to_contain_text("the request has no key", timeout=30_000)
    for key, is_visible in ((plain, False), (admin, True)):
        page.locator("#key").fill(key)
        page.locator("#key").press("Tab")
        expect(page.locator("#mode")).to_have_text("learning", timeout=30_000)
        expect(page.locator("#message")).to_have_text("")
        expect(page.locator("#rollback")).to_be_visible(visible=is_visible)
    page.close()
