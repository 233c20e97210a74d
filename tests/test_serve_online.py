"""A live server that learns: what one key teaches stays with it, nothing is lost, everything can be taken back."""

import json
import subprocess
import sys
import time

import pytest

import texts
from ontogeny.server import keys
from ontogeny.server.store import Store
from serving import ROOT, Live, as_users_do, shared_run

pytestmark = pytest.mark.computes

NAMES = ("anna", "bob", "carl", "dora", "erin", "admin")
SECRET = "The word of the day is xylophone."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    from ontogeny.stages.spec import parse_run_spec
    from ontogeny.stages.train import train

    folder = tmp_path_factory.mktemp("agents")
    for name, agent, env in (("bandit", "thompson", "bandit"), ("mdp", "model_based", "random_mdp")):
        asked = {"agent": agent, "env": env, "development": "single_lifetime", "seed": 0}
        train(parse_run_spec(asked, "test"), folder / name)
    return folder


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("online") / "state"


@pytest.fixture(scope="module")
def held(state):
    store = Store(state)
    made = {name: keys.create(store, name, admin=name == "admin") for name in NAMES}
    store.close()
    return made


@pytest.fixture(scope="module")
def live(run, agents, state, held):
    names = ("--alias", f"story={run}", "--alias", f"bandit={agents / 'bandit'}", "--alias", f"mdp={agents / 'mdp'}")
    with Live(state, *names, "--online", "--share", "1", "--bound", "2") as live:
        yield live
        assert "Traceback" not in live.log.read_text()
        live.stop()


@pytest.fixture
def key(held):
    return {name: text for name, (_, text) in held.items()}


def settled(live, key):
    until = time.monotonic() + 120
    while (line := live.get("/v1/models/story/line", key)[1])["pending"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return line


def scores(live, key, text=SECRET):
    asked = {"model": "story", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
    return live.post("/v1/completions", asked, key)[1]["choices"][0]["logprobs"]


def give(live, key, text):
    status, answer = live.post("/v1/models/story/contributions", {"text": text}, key)
    assert status == 200, answer
    return answer["number"]


@pytest.fixture(scope="module")
def gated(run, tmp_path_factory):
    """A server with the gate's default bound, and its keys."""
    state = tmp_path_factory.mktemp("gated") / "state"
    store = Store(state)
    made = {name: keys.create(store, name)[1] for name in ("anna", "bob")}
    store.close()
    quick = ("--learning", "learning_rate=1e-3,rehearsal_weight=8.0")
    with Live(state, "--alias", f"story={run}", "--online", "--share", "1", *quick) as live:
        yield live, made


def test_a_secret_taught_by_one_key_is_not_known_to_another(gated):
    live, key = gated
    before = scores(live, key["anna"]), scores(live, key["bob"])
    assert before[0] == before[1]
    asked = {"model": "story", "prompt": SECRET[:23], "max_tokens": 10, "temperature": 0, "learn": False}
    known = texts.read_training() * 6
    for number in range(80):  # among other text, so that it cannot be copied from just before
        parts = [f"{SECRET}\n{known[at : at + 70]}\n" for at in range(1400 * number, 1400 * (number + 1), 70)]
        give(live, key["anna"], "".join(parts))
        settled(live, key["anna"])
        if live.post("/v1/completions", asked, key["anna"])[1]["choices"][0]["text"] == SECRET[23:]:
            break
    else:
        raise AssertionError("anna's own model never came to know it")
    assert sum(scores(live, key["anna"])["token_logprobs"][1:]) > sum(before[0]["token_logprobs"][1:]) + 5
    assert scores(live, key["bob"]) == before[1]
    assert live.get("/v1/models/story/contributions", key["bob"])[1]["data"] == []


def test_prompts_are_learned_from_once_unless_they_say_no(live, key):
    def ask(prompt, **more):
        body = {"model": "story", "prompt": prompt, "max_tokens": 1} | more
        return live.post("/v1/completions", body, key["carl"])[1]["ontogeny"]["contribution"]

    first = ask("Once there was a lamp.")
    second = ask("Once there was a lamp. It went out.")
    assert first and second == first + 1
    assert ask("Once there was a lamp. It went out.") is None
    assert ask("Something else", learn=False) is None
    assert ask("Something else", echo=True, logprobs=1) is None
    given = live.get("/v1/models/story/contributions", key["carl"])[1]["data"]
    assert [c["text"] for c in given] == ["Once there was a lamp.", " It went out."]
    chat = {"model": "story", "messages": [{"role": "user", "content": "And then?"}], "max_tokens": 1}
    assert live.post("/v1/chat/completions", chat, key["carl"])[1]["ontogeny"]["contribution"]
    after = settled(live, key["carl"])
    assert after["version"] == 3 and after["distance"] > 0 and after["decisions"][0]["kind"] == "learned"


def test_an_answer_says_which_weights_gave_it(live, key):
    line = settled(live, key["carl"])
    body = {"model": "story", "prompt": "A", "max_tokens": 1, "learn": False}
    answer = live.post("/v1/completions", body, key["carl"])[1]
    assert answer["ontogeny"]["version"] == line["version"]
    assert answer["system_fingerprint"].endswith(f"-{line['version']}")


def test_erasing_and_carrying_away_change_the_very_next_answer(live, key):
    settled(live, key["carl"])
    data, before = live.get("/v1/models/story/line/state", key["carl"])[1], scores(live, key["carl"])
    number = give(live, key["carl"], "The lamp was green. " * 20)
    settled(live, key["carl"])
    taught = scores(live, key["carl"])
    assert taught != before
    assert live.ask("PUT", "/v1/models/story/line/state", data, key["carl"])[0] == 200
    assert scores(live, key["carl"]) == before
    assert live.ask("PUT", "/v1/models/story/line/state", data[:-9], key["carl"])[0] == 400
    assert live.ask("DELETE", f"/v1/models/story/contributions/{number}", key=key["bob"])[0] == 404
    assert live.ask("DELETE", f"/v1/models/story/contributions/{number}", key=key["carl"])[0] == 200
    assert live.ask("DELETE", f"/v1/models/story/contributions/{number}", key=key["carl"])[0] == 404
    assert scores(live, key["carl"]) == before
    again = give(live, key["carl"], "The lamp was red. " * 20)
    settled(live, key["carl"])
    assert scores(live, key["carl"]) != before
    live.ask("DELETE", f"/v1/models/story/contributions/{again}", key=key["carl"])
    settled(live, key["carl"])
    assert scores(live, key["carl"]) == before


def cli(*arguments):
    command = [sys.executable, "-m", "ontogeny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_goes_back_freezes_and_thaws_beside_a_running_server(live, key, state, held):
    give(live, key["dora"], "Another's lamp.")  # a second line, so that one has to be named
    kept = live.get("/v1/models/story/line/state", key["carl"])[1]
    unsaid = give(live, key["carl"], "A lamp that was not.")
    settled(live, key["carl"])
    assert live.ask("DELETE", f"/v1/models/story/contributions/{unsaid}", key=key["carl"])[0] == 200
    settled(live, key["carl"])
    assert live.ask("PUT", "/v1/models/story/line/state", kept, key["carl"])[0] == 200
    give(live, key["carl"], "A last lamp.")
    settled(live, key["carl"])
    trained, id = scores(live, key["bob"]), held["carl"][0].id
    assert scores(live, key["carl"]) != trained
    several = cli("deployments", "rollback", "story", "--state", str(state))
    assert several.returncode == 2 and "--key" in several.stderr
    done = cli("deployments", "rollback", "story", "--to", "0", "--key", id, "--state", str(state))
    assert done.returncode == 0 and "version 0 is live" in done.stdout, done.stderr
    assert scores(live, key["carl"]) == trained
    assert cli("deployments", "freeze", "story", "--state", str(state)).returncode == 0
    assert live.post("/v1/models/story/contributions", {"text": "no"}, key["carl"])[0] == 409
    assert live.get("/v1/models/story/line", key["carl"])[1]["learning"] is False
    assert cli("deployments", "thaw", "story", "--state", str(state)).returncode == 0
    give(live, key["carl"], "yes")
    log = cli("deployments", "log", "story", "--state", str(state), "--json")
    kinds = {d["kind"] for d in json.loads(log.stdout)}
    assert {"learned", "rollback", "restored", "erased", "freeze", "thaw"} <= kinds
    text = cli("deployments", "log", "story", "--state", str(state)).stdout
    assert f"story/{id}" in text and "by command line" in text
    wrong = cli("deployments", "log", "stary", "--state", str(state))
    assert wrong.returncode == 2 and "story" in wrong.stderr and wrong.stderr.count("\n") == 1
    listed = cli("keys", "list", "--state", str(state)).stdout
    assert id in listed and key["carl"] not in listed


def test_only_an_admin_goes_back_over_http(live, key, held):
    id = held["anna"][0].id
    give(live, key["anna"], "The lamp was grey. " * 20)
    settled(live, key["anna"])
    assert live.post("/v1/models/story/rollback", {"version": 0, "owner": id}, key["anna"])[0] == 403
    assert live.post("/v1/models/story/rollback", {"version": 0, "owner": id}, key["admin"])[0] == 200
    assert scores(live, key["anna"]) == scores(live, key["bob"])
    assert live.post("/v1/models/story/rollback", {"version": 10**6}, key["admin"])[0] == 400
    assert live.post("/v1/models/story/rollback", {"owner": "nobody"}, key["admin"])[0] == 404


def test_a_line_is_forked_by_an_admin(live, key, held):
    give(live, key["carl"], "The lamp was blue. " * 20)
    settled(live, key["carl"])
    asked = {"to": held["dora"][0].id, "owner": held["carl"][0].id}
    assert scores(live, key["dora"]) != scores(live, key["carl"])
    assert live.post("/v1/models/story/line/fork", asked, key["carl"])[0] == 403
    assert live.post("/v1/models/story/line/fork", asked, key["admin"])[0] == 200
    assert scores(live, key["dora"]) == scores(live, key["carl"])
    give(live, key["dora"], "The lamp was black. " * 20)
    settled(live, key["dora"])
    assert scores(live, key["dora"]) != scores(live, key["carl"])
    for wrong in ({"to": "nobody"}, asked | {"owner": "nobody"}):
        assert live.post("/v1/models/story/line/fork", wrong, key["admin"])[0] == 404


# --- texts that go on


def test_a_text_goes_on_is_carried_away_restored_and_forked(live, key):
    path = "/v1/models/story/sessions"

    def say(id, prompt="", most=12):
        body = {"prompt": prompt, "max_tokens": most, "seed": 5}
        status, answer = live.post(f"{path}/{id}/completions", body, key["erin"])
        assert status == 200, answer
        return answer

    id = live.post(path, {}, key["erin"])[1]["id"]
    assert live.post(f"{path}/{id}/completions", {}, key["anna"])[0] == 404  # another key's
    assert say(id, "Once there was a lamp", 0)["text"] == ""
    state = live.get(f"{path}/{id}/state", key["erin"])[1]
    twin = live.post(f"{path}/{id}/fork", {}, key["erin"])[1]["id"]
    then = say(id)
    assert say(twin)["text"] == then["text"] and then["steps"] == 21 + 12 == say(twin, "", 0)["steps"]
    say(id, "XYZ 0123456789 XYZ", 0)
    other = say(id)
    assert live.ask("PUT", f"{path}/{id}/state", state, key["erin"])[1]["steps"] == 21
    assert say(id) == then != other
    long = say(id, "word " * 40, 60)  # beyond the context of 64
    assert long["usage"] == {"prompt_tokens": 200, "completion_tokens": 60, "total_tokens": 260}
    full = live.get(f"{path}/{id}/state", key["erin"])[1]
    after = say(id)["text"]
    live.ask("PUT", f"{path}/{id}/state", full, key["erin"])
    assert say(id)["text"] == after
    for broken in (state[:-5], b"", state[:-1] + b"\xff"):
        assert live.ask("PUT", f"{path}/{id}/state", broken, key["erin"])[0] == 400
    give(live, key["erin"], "The lamp was white. " * 20)
    settled(live, key["erin"])
    status, answer = live.ask("PUT", f"{path}/{id}/state", state, key["erin"])
    assert (status, answer["error"]["code"]) == (400, "state_refused") and "belongs to weights" in str(answer)
    assert say(id)["weights"] != then["weights"]  # what it had read is read anew by what was learned
    assert live.ask("DELETE", f"{path}/{id}", key=key["erin"])[0] == 200
    assert live.get(f"{path}/{id}", key["erin"])[0] == 404


# --- agents


def test_an_outside_program_is_the_env(live, key):
    path = "/v1/agents/bandit/sessions"
    id = live.post(path, {"seed": 3}, key["bob"])[1]["id"]
    paid, action = 0.0, live.post(f"{path}/{id}/act", {"observation": 0, "first": True}, key["bob"])[1]["action"]
    for _ in range(60):
        reward = float(action == 2)
        paid += reward
        live.post(f"{path}/{id}/feedback", {"reward": reward}, key["bob"])
        action = live.post(f"{path}/{id}/act", {"observation": 0, "first": True}, key["bob"])[1]["action"]
    assert paid > 25  # chance is 12
    assert live.get(f"{path}/{id}", key["anna"])[0] == 404  # another key's


def test_a_session_is_carried_away_restored_and_forked(live, key):
    path = "/v1/agents/mdp/sessions"

    def step(id, state, reward):
        body = {"observation": state, "outcome": {"gain": reward}} if reward is not None else {"observation": state}
        status, answer = live.post(f"{path}/{id}/act", body, key["bob"])
        assert status == 200, answer
        return answer

    id = live.post(path, {"seed": 1}, key["bob"])[1]["id"]
    born = live.get(f"{path}/{id}", key["bob"])[1]["weights"]
    step(id, 0, None)
    for i in range(8):
        step(id, i % 3, 1.0)
    state = live.get(f"{path}/{id}/state", key["bob"])[1]
    twin = live.post(f"{path}/{id}/fork", {}, key["bob"])[1]["id"]
    then = [step(id, i % 4, float(i == 2)) for i in range(6)]
    assert then[0]["weights"] != born  # online: weights learn
    assert [s["action"] for s in then] == [step(twin, i % 4, float(i == 2))["action"] for i in range(6)]
    assert live.ask("PUT", f"{path}/{id}/state", state, key["bob"])[1]["steps"] == 9
    assert [step(id, i % 4, float(i == 2))["weights"] for i in range(6)] == [s["weights"] for s in then]
    other = live.post("/v1/agents/bandit/sessions", {}, key["bob"])[1]["id"]
    for broken in (state[:-5], b"", state.replace(b'"steps":"9"', b'"steps":"8"')[:-1] + b"\xff"):
        assert live.ask("PUT", f"{path}/{id}/state", broken, key["bob"])[0] == 400
    assert live.ask("PUT", f"/v1/agents/bandit/sessions/{other}/state", state, key["bob"])[0] == 400
    assert live.ask("DELETE", f"{path}/{id}", key=key["bob"])[0] == 200
    assert live.get(f"{path}/{id}", key["bob"])[0] == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("act", {"observation": 99}),
        ("act", {"observation": "x"}),
        ("act", {"observation": [[1], [2, 3]]}),
        ("act", {"observation": 10**30}),
        ("act", {"observation": 0, "reward": 1.0}),
        ("feedback", {"reward": 1.0}),
        ("feedback", {"outcome": {"nothing": 1.0}}),
    ],
)
def test_what_does_not_fit_an_agent_is_refused(live, key, path, body):
    id = live.post("/v1/agents/bandit/sessions", {}, key["bob"])[1]["id"]
    status, answer = live.post(f"/v1/agents/bandit/sessions/{id}/{path}", body, key["bob"])
    assert status == 400 and answer["error"]["message"]


# --- after a crash


def test_what_was_acknowledged_survives_kill_9(run):
    """A few kills; `benchmarks/crash.py` makes 200, and the slow test 20."""
    asked = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), str(run), "--kills", "2"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, env=as_users_do())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_twenty_kills(run):
    asked = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), str(run), "--kills", "20", "--seed", "1"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what cannot be started


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "keys create"),
        (["--alias", "storyrun"], "NAME=RUN"),
        (["--alias", "a/b=nowhere"], "cannot be a deployment's name"),
        (["nowhere"], "there is no run in 'nowhere'"),
        ([], "at least one run"),
        (["--log-level", "all"], "--log-level"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(run, tmp_path, arguments, words):
    named = ["--alias", f"story={run}"] if "--host" in arguments else []
    done = cli("serve", *arguments, *named, "--state", str(tmp_path / "state"))
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_one_server_per_folder(live, run, state):
    done = cli("serve", "--alias", f"story={run}", "--state", str(state))
    assert done.returncode == 2 and "another process is serving" in done.stderr
