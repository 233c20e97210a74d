"""The writing page in headless Chromium: by keyboard, at the width of a phone, without requests to other hosts."""

import contextlib
import itertools
import re

import pytest
from playwright.sync_api import expect

from ontogeny.server import keys
from ontogeny.server.learning import text_scores
from ontogeny.server.learning.acceptance import rejection_reason
from ontogeny.server.store import Store
from serving import NEEDS_CHROMIUM, ServerProcess, open_chromium, shared_run, wait_until

pytestmark = [pytest.mark.computes, NEEDS_CHROMIUM]
STORY = (
    "The agent came to the old door of the tower. She knocked twice and waited. Nobody answered, and the wind carried "
    "the smell of the sea up the stairs."
)
WORDS_OF_OPERATORS = re.compile(
    r"\b(nats?|contributions?|bounds?|digests?|held-out|loss|versions?|temperature|tokens?|branch(es)?|weights|examples?|"
    r"online|frozen|prompts?|null|undefined|NaN)\b",
    re.IGNORECASE,
)
WITHOUT_STORAGE = """for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, {get() { throw new DOMException("denied", "SecurityError"); }});"""
# The text of the page without the words of the author and of the model.
VISIBLE_TEXT = """() => {
  const texts = [...document.querySelectorAll(".continuation p, .text, #stories")];
  for (const element of texts) element.style.display = "none";
  const visible = document.body.innerText.replace(/“[^”]*”/g, "");
  for (const element of texts) element.style.display = "";
  return visible;
}"""
# Keeps what the server sends beside what the page shows.
RECORDING = """const send = window.fetch; window.received = ["", "", ""]; window.reasons = [null, null, null];
window.fetch = async (...request) => {
  const response = await send(...request);
  if (String(request[0]).endsWith("/completions")) (async () => {
    let rest = "";
    const reader = response.clone().body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\\n\\n"); rest = events.pop();
      for (const {index, text, finish_reason} of events.filter(event => !event.includes("[DONE]"))
        .flatMap(event => JSON.parse(event.slice(6)).choices)) {
        window.received[index] += text; window.reasons[index] ??= finish_reason;
      }
    }
  })().catch(() => null);
  return response;
};"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    run, state_dir = shared_run(tmp_path_factory), tmp_path_factory.mktemp("page") / "state"
    arguments = ("--alias", f"story={run}", "--alias", f"other={run}", "--online", "--max-forgetting", "2")
    with ServerProcess(state_dir, *arguments, "--freeze", "other") as server:
        server.arguments = [*arguments, "--freeze", "other"]
        yield server


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@contextlib.contextmanager
def opened_page(browser, server, *scripts, width=1280, scheme="light"):
    """The page in a browser without its data; fails if the page breaks, loads anything else, or fails `check_words`."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    for script in scripts:
        context.add_init_script(script)
    errors, foreign_urls = [], []
    context.on("page", lambda page: page.on("pageerror", lambda error: errors.append(str(error))))
    context.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    context.on("request", lambda r: None if r.url.startswith(server.url) else foreign_urls.append(r.url))
    page = context.new_page()
    page.goto(server.url)
    yield page
    check_words(page)
    assert not errors and not [url for url in foreign_urls if not url.startswith(f"blob:{server.url}")]
    context.close()


def check_words(page):
    """Fails if the visible text has words of operators, an element has no name, or the page exceeds the screen."""
    assert WORDS_OF_OPERATORS.findall(page.evaluate(VISIBLE_TEXT)) == []
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button,select,input,textarea')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim())).map(e => e.id)"
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def ask(page):
    """Asks for three continuations that the model may not end at once, and returns them."""
    with page.expect_request("**/v1/completions") as request:
        page.locator("#generate").click()
    assert request.value.post_data_json["min_tokens"] == 16
    buttons = page.locator(".continuation button")
    for index in range(3):
        expect(buttons.nth(index)).to_be_enabled(timeout=60_000)
    return [text.strip() for text in page.locator(".continuation p").all_text_contents()]


def count_examples(server, key=None):
    """The number of texts that the key gave to the model and has not erased."""
    return len(server.get("/v1/models/story/examples", key)[1]["data"])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), pytest.param(390, "dark", marks=pytest.mark.slow)])
def test_a_story_is_continued_and_learned(server, browser, width, scheme, tmp_path):
    opening = f"The agent came to door {width}."
    with opened_page(browser, server, width=width, scheme=scheme) as page:
        expect(page.locator("#mode")).to_have_text("learning", timeout=30_000)
        story = page.locator("#story")
        story.click()
        page.keyboard.type(opening)
        page.keyboard.press("Control+Enter")
        buttons = page.locator(".continuation button")
        expect(buttons).to_have_count(3, timeout=30_000)
        for index in range(3):
            expect(buttons.nth(index)).to_be_enabled(timeout=60_000)
        texts = page.locator(".continuation p").all_inner_texts()
        assert len(set(texts)) == 3
        boxes = [page.locator(".continuation").nth(index).bounding_box() for index in range(3)]
        side_by_side = len({box["y"] for box in boxes}) == 1
        assert side_by_side == (width > 800)
        check_words(page)
        page.screenshot(path=tmp_path / "continuations.png", full_page=True)
        page.keyboard.press("Alt+2")
        continued = story.input_value()
        assert continued.startswith(opening) and len(continued) > 40
        expect(buttons).to_have_count(0)
        page.locator("#undo").click()
        assert story.input_value() == opening
        page.locator("#redo").click()
        assert story.input_value() == continued
        expect(page.locator("#events li").first).to_contain_text("Learned “The agent came to door", timeout=60_000)
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("#rollback").click()
        expect(page.locator("#events li").first).to_contain_text(
            "returned to the state before it learned anything", timeout=20_000
        )
        expect(page.locator("#texts .outcome").first).to_contain_text("Set aside")
        check_words(page)
        page.locator("#technical summary").click()
        expect(page.locator("#details")).to_contain_text("0.00 %")
        expect(page.locator("#decisions tr").first).to_contain_text("rollback")
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
        page.screenshot(path=tmp_path / "after.png", full_page=True)
        page.locator("#technical summary").click()


def test_a_reload_keeps_the_story_the_settings_and_the_continuations(server, browser):
    with opened_page(browser, server) as page:
        page.locator("#model").select_option("other")
        page.locator("#length").select_option("a line")
        page.locator("#style").select_option("surprising")
        page.locator("#story").fill(STORY)
        texts = ask(page)
        page.reload()
        assert page.locator("#story").input_value() == STORY
        assert [text.strip() for text in page.locator(".continuation p").all_text_contents()] == texts
        expect(page.locator("#model")).to_have_value("other", timeout=20_000)
        assert (page.locator("#length").input_value(), page.locator("#style").input_value()) == ("40", "1.1")
        expect(page.locator("#mode")).to_have_text("does not learn")
        expect(page.locator("#learn-choice")).to_be_hidden()
        page.locator(".continuation button").first.click()
        assert page.locator("#story").input_value().endswith(texts[0])


def test_a_new_story_leaves_the_earlier_ones_and_a_deleted_one_is_gone(server, browser):
    with opened_page(browser, server) as page:
        story = page.locator("#story")
        story.fill("The first story.")
        page.locator("#new").click()
        assert story.input_value() == ""
        story.fill("The second story.")
        page.locator("#stories").select_option("The first story.")
        assert story.input_value() == "The first story."
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "The first story.txt"
        assert download.value.path().read_text() == "The first story."
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("#delete").click()
        assert story.input_value() == "The second story."
        page.reload()
        assert page.locator("#stories option").all_text_contents() == ["The second story."]
        page.locator("#model").select_option("other")
        page.locator("#length").select_option("a page")
        page.locator("#generate").click()
        expect(page.locator(".continuation p").first).not_to_be_empty(timeout=60_000)
        page.locator("#new").click()
        expect(page.locator("#generate")).to_be_enabled()
        expect(page.locator(".continuation")).to_have_count(0)
        assert all(ask(page)) and story.input_value() == ""


def test_two_windows_do_not_overwrite_each_other(server, browser):
    with opened_page(browser, server) as first:
        first.locator("#story").fill("A story.")
        second = first.context.new_page()
        second.goto(server.url)
        assert second.locator("#story").input_value() == "A story."
        second.locator("#story").fill("A story, continued.")
        expect(first.locator("#story")).to_have_value("A story, continued.")
        expect(first.locator("#message")).to_contain_text("in another window")
        second.locator("#new").click()
        second.locator("#story").fill("Another story.")
        first.reload()
        assert first.locator("#story").input_value() == "A story, continued."
        # A change that this window does not know yet, as of a window that the browser has suspended:
        first.evaluate(
            """() => { const key = Object.keys(localStorage).find(key => localStorage[key].includes("continued"));
            localStorage[key] = JSON.stringify({text: "A third one.", revision: "x", changedAt: Date.now()}); }"""
        )
        first.locator("#story").fill("A fourth one.")
        expect(first.locator("#message")).to_contain_text("Both are kept")
        stories = first.locator("#stories option").all_text_contents()
        assert stories[0] == "A fourth one." and set(stories[1:]) == {"A third one.", "Another story."}


def test_the_page_works_in_a_browser_that_stores_nothing(server, browser):
    with opened_page(browser, server, WITHOUT_STORAGE) as page:
        expect(page.locator("#mode")).not_to_be_empty(timeout=20_000)
        page.locator("#story").fill(STORY)
        expect(page.locator("#message")).to_contain_text("does not keep your story")
        page.locator("#model").select_option("other")
        assert all(ask(page))


def test_a_full_storage_of_the_browser_loses_no_story(server, browser):
    fill = """() => { for (let size = 1 << 22; size; size >>= 1)
      try { localStorage.setItem(`other${size}`, "x".repeat(size)); } catch { } }"""
    with opened_page(browser, server) as page:
        page.locator("#story").fill("A story.")
        page.evaluate(fill)
        page.locator("#story").fill(STORY * 10)
        expect(page.locator("#message")).to_contain_text("does not keep your story")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.locator("#new").click()
        assert page.locator("#story").input_value() == STORY * 10
        page.evaluate(
            "for (const key of Object.keys(localStorage)) if (key.startsWith('other')) localStorage.removeItem(key)"
        )
        page.locator("#story").press_sequentially("!")
        expect(page.locator("#message")).to_be_empty()
        page.reload()
        assert page.locator("#story").input_value() == f"{STORY * 10}!"


def test_asking_without_teaching_adds_no_example(server, browser):
    with opened_page(browser, server) as page:
        expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
        number = count_examples(server)
        page.locator("#learn").uncheck()
        page.locator("#story").fill(f"{STORY} It was Monday.")
        ask(page)
        page.reload()
        expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
        assert not page.locator("#learn").is_checked()
        ask(page)
        assert count_examples(server) == number
        page.locator("#learn").check()
        ask(page)
        assert count_examples(server) == number + 1
        ask(page)
        assert count_examples(server) == number + 1


def test_a_text_that_was_given_is_listed_and_erased(server, browser):
    text = "The whale sang below the pier until the lamps went out, and nobody in the town heard it at all."
    with opened_page(browser, server, width=390) as page:
        page.locator("#story").fill(text)
        expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
        ask(page)
        first = page.locator("#texts li").first
        expect(first).to_contain_text("The whale sang below the pier", timeout=20_000)
        expect(first.locator(".outcome")).to_contain_text("just now · Learned.", timeout=60_000)
        check_words(page)
        number = count_examples(server)
        page.once("dialog", lambda dialog: dialog.dismiss())
        first.get_by_role("button", name="Erase “The whale").click()
        assert count_examples(server) == number
        dialogs = []
        page.once("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.accept()))
        first.get_by_role("button", name="Erase “The whale").click()
        expect(page.locator("#message")).to_contain_text("Your story still holds it", timeout=30_000)
        assert "as if it had never learned it" in dialogs[0] and not page.locator("#learn").is_checked()
        expect(page.locator("#texts")).not_to_contain_text("whale", timeout=20_000)
        expect(page.locator("#events li").first).to_contain_text("A text was erased", timeout=20_000)
        assert count_examples(server) == number - 1


def test_a_long_list_of_texts_is_read_in_pages(server, browser):
    for _ in range(25):
        assert server.post("/v1/models/story/examples", {"text": "x"})[0] == 200
    with opened_page(browser, server) as page:
        expect(page.locator("#texts li")).to_have_count(20, timeout=20_000)
        page.locator("#more-texts").click()
        expect(page.locator("#texts li")).not_to_have_count(20, timeout=20_000)
        assert page.locator("#texts li").count() == min(40, count_examples(server))
        expect(page.locator("#texts li").first).to_contain_text("Not learned, because it is too short.", timeout=60_000)


def test_continuations_end_with_a_word(server, browser):
    with opened_page(browser, server, RECORDING) as page:
        page.locator("#story").fill(STORY)
        page.locator("#model").select_option("other")
        for length in ("a line", "a paragraph"):
            page.locator("#length").select_option(length)
            page.evaluate("window.received = ['', '', '']; window.reasons = [null, null, null]")
            ask(page)
            texts = page.locator(".continuation p").all_text_contents()
            received, reasons = page.evaluate("[window.received, window.reasons]")
            for text, sent, reason in zip(texts, received, reasons, strict=True):
                assert text and sent.startswith(text)
                is_natural_end = reason == "stop" and text == sent.rstrip()
                assert is_natural_end or sent[len(text)].isspace(), (text, sent)


CONTINUATIONS = [  # requested length, parts that arrive, the reason of the end, what is shown
    (3, [" The", " do", "or", " ope", "ned. ", "She", " wai"], "length", " The door opened."),
    (3, [" The", " do", "or", " ope", "ned", " wide", " an"], "length", " The"),
    (9, [" The", " do", "or", " opened"], "stop", " The door opened"),
    (2, [" He met", " Dr. ", "Lee", " there.", " An"], "length", " He met Dr. Lee there."),
    (4, ["むかし", "むかし", "、おじ", "いさん", "がいた。", "そし"], "length", "むかしむかし、おじいさんがいた。"),
    (9, ["むかし", "むかし", "、おじ"], "length", "むかしむかし、お"),
    (9, ["x" * 30, "y" * 30], "length", "x" * 30 + "y" * 29),
    (1, [" One. ", "Two. ", "Three"], "length", " One."),
]


def test_a_visible_continuation_only_grows_and_ends_with_a_sentence_if_one_ends_soon(server, browser):
    show = """async ([length, parts, reason]) => {
      const {Continuation} = await import("/assets/continuation.js");
      const continuation = new Continuation(length), shown = [];
      parts.forEach((part, i) => {
        continuation.add(part, i === parts.length - 1 ? reason : null); shown.push(continuation.shown);
      });
      return shown;
    }"""
    with opened_page(browser, server) as page:
        for length, parts, reason, expected in CONTINUATIONS:
            texts = page.evaluate(show, [length, parts, reason])
            assert texts[-1] == expected
            assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_the_page_says_which_part_of_the_story_the_model_reads(server, browser):
    context_length = server.get("/v1/models/story")[1]["ontogeny"]["context_length"]
    assert context_length == server.post("/tokenize", {"model": "story", "prompt": ""})[1]["max_model_len"]
    with opened_page(browser, server) as page:
        expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
        page.locator("#story").fill("A short story.")
        expect(page.locator("#visible-part")).to_be_hidden()
        page.locator("#story").fill(STORY)
        expect(page.locator("#visible-words")).to_contain_text("The model reads only the end of your story")
        page.locator("#show-visible").click()
        start = page.evaluate("document.getElementById('story').selectionStart")
        assert len(STORY) - context_length <= start <= len(STORY) - context_length / 2  # one byte is one token here
        words = STORY[start:].split()
        expect(page.locator("#visible-words")).to_contain_text(
            f"the last {len(words)} words, from “{' '.join(words[:5])}”"
        )


def test_reasons_and_failures_are_described_in_the_words_of_an_author(server, browser):
    reason = rejection_reason(9.0, 1.0, 0.05)
    describe = """async ([reason, failures]) => {
      const words = await import("/assets/words.js");
      const decision = {kind: "rejected", reason, version: null};
      const kinds = ["rollback", "erased", "restored", "forked", "freeze", "unfreeze", "other"];
      return [words.describeDecision(decision, "A story."), words.describeDecision({...decision, reason: "unknown"}),
        ...kinds.map(kind => words.describeDecision({kind, reason: "by anna; examples", version: 0})),
        ...failures.map(([status, code, message]) => words.describeFailure(status, {code, message, param: "prompt"}))];
    }"""
    failures = [
        (429, "insufficient_quota", "the key may have at most 5 examples that wait to be learned; erase some"),
        (429, "insufficient_quota", "the key may have at most 5 bytes; delete sessions or erase examples"),
        *[(status, code, "a token") for status, code in (
            (400, None), (401, "invalid_api_key"), (403, None), (404, "model_not_found"), (404, "not_found"),
            (409, "frozen"), (413, None), (429, "queue_full"), (429, "rate_limit_exceeded"), (500, None),
            (503, "storage_unavailable"), (503, "time_limit"), (503, "not_ready"),
            (503, "server_stops"), (503, "branch_unavailable"), (418, None),
        )],
    ]  # fmt: skip
    with opened_page(browser, server) as page:
        sentences = page.evaluate(describe, [reason, failures])
    assert sentences[0] == "Did not learn “A story.”, because the model would have forgotten too much of what it knew."
    assert all(sentence.endswith(".") and not WORDS_OF_OPERATORS.search(sentence) for sentence in sentences), sentences
    assert "waiting to be learned" in sentences[9] and "keeps no more of your texts" in sentences[10]


def test_a_picture_says_whether_the_model_learns_from_its_author(server, browser):
    """Texts that learning makes cheaper by a fifth, then texts that it makes dearer."""
    owner = server.get("/v1/models/story/branch")[1]
    server.post("/v1/models/story/examples", {"text": "A lamp that was given to the picture of the page."})
    wait_until(lambda: server.get("/v1/models/story/branch")[1]["num_pending"] == 0)

    def add_scores(count, live_bits):
        with Store(server.state_dir) as store, store.transaction():
            branch = store.select_value("SELECT branch FROM text_scores LIMIT 1")
            first = store.select_value("SELECT max(example) FROM text_scores") + 100_000
            for number in range(count):
                score = text_scores.TextScore(500, 2000.0 + number % 7, live_bits + number % 5)
                text_scores.add_score(store, branch, first + number, 0, score)
        server.post("/v1/models/story/examples", {"text": f"A lamp after {first} others in the night."})

    assert owner["mode"] == "online"
    for count, live_bits, answer in ((40, 1600.0, r"^Yes\."), (400, 3000.0, r"^No\.")):
        add_scores(count, live_bits)
        with opened_page(browser, server) as page:
            expect(page.locator("#saving-answer")).to_have_text(re.compile(answer), timeout=30_000)
            assert page.locator("#saving-curves polyline").count() == 3
            assert page.locator("#saving-curves polygon.band").get_attribute("points")
            box = page.locator("#saving-curves").bounding_box()
            assert box and box["height"] > 100


def test_the_key_field_is_visible_only_where_the_server_needs_a_key(server, browser):
    """After this test every request needs a key."""
    with opened_page(browser, server) as page:
        expect(page.locator("#mode")).not_to_be_empty(timeout=20_000)
        for element in ("#key", "#change-key"):
            expect(page.locator(element)).to_be_hidden()
        store = Store(server.state_dir)
        (plain_key, plain), (_, admin) = keys.create_key(store, "anna"), keys.create_key(store, "me", admin=True)
        page.locator("#story").fill(STORY)
        page.locator("#generate").click()
        expect(page.locator("#key-message")).to_contain_text("asks for an access key")
        page.locator("#key").fill("og-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-message")).to_contain_text("does not know this access key")
        check_words(page)
        late_requests = []
        page.route("**/branch", lambda route: late_requests.append(route))
        page.locator("#key").fill(plain)
        page.locator("#use-key").click()
        page.locator("#change-key").click()
        page.locator("#key").fill("og-other")
        for route in late_requests:
            route.continue_()
        page.unroute("**/branch")
        expect(page.locator("#use-key")).to_be_enabled(timeout=20_000)
        expect(page.locator("#key")).to_have_value("og-other")  # an answer that comes late closes nothing
        for key, is_visible in ((plain, False), (admin, True), (plain, False)):
            if page.locator("#change-key").is_visible():
                page.locator("#change-key").click()
            page.locator("#key").fill(key)
            page.locator("#use-key").click()
            expect(page.locator("#key-form")).to_be_hidden(timeout=20_000)
            expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
            expect(page.locator("#rollback")).to_be_visible(visible=is_visible)
        assert all(ask(page)) and count_examples(server, plain) == 1
        expect(page.locator("#texts li")).to_have_count(1, timeout=20_000)
        assert page.locator("#story").input_value() == STORY and "og-" not in page.url
        assert page.evaluate("Object.values(localStorage).join()").find(plain) < 0
        second = page.context.new_page()
        second.goto(server.url)
        expect(second.locator("#key-message")).to_contain_text("asks for an access key", timeout=20_000)
        second.locator("#key").fill(plain)
        second.locator("#remember").check()
        second.locator("#use-key").click()
        expect(second.locator("#key-form")).to_be_hidden(timeout=20_000)
        third = page.context.new_page()
        third.goto(server.url)
        expect(third.locator("#mode")).to_have_text("learning", timeout=20_000)
        keys.revoke_key(store, plain_key.id)
        store.close()
        page.reload()
        expect(page.locator("#key-message")).to_contain_text("it was withdrawn", timeout=20_000)
        assert page.locator("#story").input_value() == STORY


def test_a_request_goes_on_after_a_restart_of_the_server_and_teaches_once(server, browser):
    """The last test of this file, because it stops the server."""
    store = Store(server.state_dir)
    key = keys.create_key(store, "ben")[1]
    store.close()
    with opened_page(browser, server) as page:
        page.locator("#key").fill(key)
        page.locator("#use-key").click()
        expect(page.locator("#mode")).to_have_text("learning", timeout=20_000)
        page.locator("#story").fill(STORY)
        server.stop()
        page.locator("#generate").click()
        expect(page.locator("#message")).to_contain_text("Your story is safe. Trying again")
        check_words(page)
        with ServerProcess(server.state_dir, *server.arguments, port=server.port) as restarted:
            for index in range(3):
                expect(page.locator(".continuation button").nth(index)).to_be_enabled(timeout=60_000)
            expect(page.locator("#message")).to_be_empty()
            assert count_examples(restarted, key) == 1
            wait_until(lambda: page.locator("#texts li").count() == 1)
