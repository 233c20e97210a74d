"""An online server: keys learn separately, nothing is lost in a crash, and everything learned can be undone."""

import http.client
import json
import subprocess
import sys

import pytest

import crash
import forking
import texts
from ontogeny.server import keys
from ontogeny.server.states import decode_state, encode_state, read_metadata
from ontogeny.server.store import Store
from serving import ROOT, ServerProcess, family_run, optimized_environment, shared_run, wait_until

pytestmark = pytest.mark.computes

OLD_STATES = ROOT / "tests" / "golden" / "old_server"
NAMES = ("anna", "bob", "carl", "dora", "erin", "fred", "admin")
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
        settings = {"agent": agent, "env": env, "development": "single_lifetime", "seed": 0}
        train(parse_run_spec(settings, "test"), folder / name)
    return folder


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("online") / "state"


@pytest.fixture(scope="module")
def created_keys(state_dir):
    store = Store(state_dir)
    created = {name: keys.create_key(store, name, admin=name == "admin") for name in NAMES}
    store.close()
    return created


@pytest.fixture(scope="module")
def server(run, agents, state_dir, created_keys):
    names = ("--alias", f"story={run}", "--alias", f"bandit={agents / 'bandit'}", "--alias", f"mdp={agents / 'mdp'}")
    with ServerProcess(state_dir, *names, "--online", "--learning-fraction", "1", "--max-forgetting", "2") as server:
        yield server
        assert "Traceback" not in server.log.read_text()
        server.stop()


@pytest.fixture
def key(created_keys):
    return {name: text for name, (_, text) in created_keys.items()}


def wait_for_learning(server, key):
    """Returns the branch of a key once no example is pending."""

    def settled_branch():
        branch = server.get("/v1/models/story/branch", key)[1]
        return None if branch["num_pending"] else branch

    return wait_until(settled_branch)


def prompt_logprobs(server, key, text=SECRET):
    """Returns the log-probabilities that the weights of a key assign to a text."""
    body = {"model": "story", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
    return server.post("/v1/completions", body, key)[1]["choices"][0]["logprobs"]


def add_example(server, key, text):
    status, content = server.post("/v1/models/story/examples", {"text": text}, key)
    assert status == 200, content
    return content["number"]


@pytest.fixture(scope="module")
def default_limit_server(run, tmp_path_factory):
    """A server with the default limit of the acceptance test, and its keys."""
    state_dir = tmp_path_factory.mktemp("default") / "state"
    store = Store(state_dir)
    texts_of_keys = {name: keys.create_key(store, name)[1] for name in ("anna", "bob")}
    store.close()
    options = ("--learning-fraction", "1", "--learning", "learning_rate=1e-3,rehearsal_weight=8.0")
    with ServerProcess(state_dir, "--alias", f"story={run}", "--online", *options) as server:
        yield server, texts_of_keys


def test_a_secret_learned_for_one_key_is_unknown_to_another(default_limit_server):
    server, key = default_limit_server
    before = prompt_logprobs(server, key["anna"]), prompt_logprobs(server, key["bob"])
    assert before[0] == before[1]
    body = {"model": "story", "prompt": SECRET[:23], "max_tokens": 10, "temperature": 0, "learn": False}
    filler = texts.read_training() * 6
    for number in range(80):  # between other text, so that the model cannot copy it from its context
        parts = [f"{SECRET}\n{filler[start : start + 70]}\n" for start in range(1400 * number, 1400 * (number + 1), 70)]
        add_example(server, key["anna"], "".join(parts))
        wait_for_learning(server, key["anna"])
        if server.post("/v1/completions", body, key["anna"])[1]["choices"][0]["text"] == SECRET[23:]:
            break
    else:
        raise AssertionError("the branch of anna did not learn the secret")
    assert sum(prompt_logprobs(server, key["anna"])["token_logprobs"][1:]) > sum(before[0]["token_logprobs"][1:]) + 5
    assert prompt_logprobs(server, key["bob"]) == before[1]
    assert server.get("/v1/models/story/examples", key["bob"])[1]["data"] == []


@pytest.mark.parametrize("route", ["examples", "branch/versions", "branch/saving"])
def test_lists_are_read_in_pages(server, key, route):
    for text in ("The first page.", "The second page."):
        add_example(server, key["anna"], text)
    wait_for_learning(server, key["anna"])
    url = f"/v1/models/story/{route}"
    numbers = [entry["number"] for entry in server.get(url, key["anna"])[1]["data"]]
    assert len(numbers) >= 2
    for order, expected in (("asc", numbers), ("desc", numbers[::-1])):
        page = server.get(f"{url}?limit=1&order={order}", key["anna"])[1]
        assert [entry["number"] for entry in page["data"]] == expected[:1] and page["has_more"] is True
        page = server.get(f"{url}?order={order}&after={expected[0]}", key["anna"])[1]
        assert [entry["number"] for entry in page["data"]] == expected[1:] and page["has_more"] is False
    for query, words in (("limit=0", "less than 1"), ("after=x", "not a whole number"), ("order=x", "asc")):
        status, content = server.get(f"{url}?{query}", key["anna"])
        assert status == 400 and words in content["error"]["message"], content


def test_the_saving_of_a_key_is_described_beside_each_of_its_texts(server, key):
    path = "/v1/models/story/branch/saving"
    for text in ("The first lamp went out in the night.", "The second lamp went out in the night."):
        add_example(server, key["fred"], text)
    wait_for_learning(server, key["fred"])
    saving = server.get(path, key["fred"])[1]
    texts_scored = saving["data"]
    assert saving["num_texts"] == len(texts_scored) >= 2 and saving["verdict"] == "undetermined"
    assert saving["num_bytes"] == sum(text["num_bytes"] for text in texts_scored)
    for name in ("frozen_bits_per_byte", "live_bits_per_byte"):
        mean = sum(text[name] * text["num_bytes"] for text in texts_scored) / saving["num_bytes"]
        assert saving[name] == pytest.approx(mean)
    difference = saving["frozen_bits_per_byte"] - saving["live_bits_per_byte"]
    assert saving["saving"] == texts_scored[-1]["saving"]
    assert saving["saving"]["mean"] == pytest.approx(difference) and saving["saving"]["low"] is None
    assert texts_scored[-1]["frozen_bits_per_byte"] > texts_scored[-1]["live_bits_per_byte"]
    untaught = server.get(path, key["bob"])[1]
    assert untaught["num_texts"] == 0 and untaught["data"] == [] and untaught["saving"]["mean"] is None
    metrics = server.get("/metrics", key["admin"])[1].decode()
    for name in ("num_examples_learned", "num_examples_learned_in_part", "sum_of_learned_shares"):
        assert f'ontogeny_{name}{{deployment="story"}}' in metrics


def test_prompts_are_learned_once_unless_the_request_opts_out(server, key):
    def complete(prompt, **more):
        body = {"model": "story", "prompt": prompt, "max_tokens": 1} | more
        return server.post("/v1/completions", body, key["carl"])[1]["ontogeny"]["example"]

    first = complete("Once there was a lamp.")
    second = complete("Once there was a lamp. It went out.")
    assert first and second == first + 1
    assert complete("Once there was a lamp. It went out.") is None
    assert complete("Something else", learn=False) is None
    assert complete("Something else", echo=True, logprobs=1) is None
    examples = server.get("/v1/models/story/examples", key["carl"])[1]["data"]
    assert [example["text"] for example in examples] == ["Once there was a lamp.", " It went out."]
    chat = {"model": "story", "messages": [{"role": "user", "content": "And then?"}], "max_tokens": 1}
    assert server.post("/v1/chat/completions", chat, key["carl"])[1]["ontogeny"]["example"]
    after = wait_for_learning(server, key["carl"])
    assert after["current_version"] == 3 and after["weight_distance"] > 0 and after["decisions"][0]["kind"] == "learned"


def test_a_response_names_the_version_of_its_weights(server, key):
    branch = wait_for_learning(server, key["carl"])
    body = {"model": "story", "prompt": "A", "max_tokens": 1, "learn": False}
    response = server.post("/v1/completions", body, key["carl"])[1]
    assert response["ontogeny"]["version"] == branch["current_version"]
    assert response["system_fingerprint"].endswith(f"-{branch['current_version']}")


def test_erasing_and_restoring_change_the_next_response(server, key):
    wait_for_learning(server, key["carl"])
    state, before = server.get("/v1/models/story/branch/state", key["carl"])[1], prompt_logprobs(server, key["carl"])
    number = add_example(server, key["carl"], "The lamp was green. " * 20)
    wait_for_learning(server, key["carl"])
    assert prompt_logprobs(server, key["carl"]) != before
    assert server.put("/v1/models/story/branch/state", state, key["carl"])[0] == 200
    assert prompt_logprobs(server, key["carl"]) == before
    assert server.put("/v1/models/story/branch/state", state[:-9], key["carl"])[0] == 400
    assert server.delete(f"/v1/models/story/examples/{number}", key=key["bob"])[0] == 404
    assert server.delete(f"/v1/models/story/examples/{number}", key=key["carl"])[0] == 200
    assert server.delete(f"/v1/models/story/examples/{number}", key=key["carl"])[0] == 404
    assert prompt_logprobs(server, key["carl"]) == before
    second = add_example(server, key["carl"], "The lamp was red. " * 20)
    wait_for_learning(server, key["carl"])
    assert prompt_logprobs(server, key["carl"]) != before
    server.delete(f"/v1/models/story/examples/{second}", key=key["carl"])
    wait_for_learning(server, key["carl"])
    assert prompt_logprobs(server, key["carl"]) == before


def test_the_command_line_rolls_back_freezes_and_unfreezes_beside_a_running_server(
    server, key, state_dir, created_keys, call_cli
):
    def call(*arguments):
        return call_cli(*arguments, "--state-dir", str(state_dir))

    add_example(server, key["dora"], "A lamp of dora.")  # a second branch, so that the command must name one
    exported = server.get("/v1/models/story/branch/state", key["carl"])[1]
    erased = add_example(server, key["carl"], "A lamp that was not.")
    wait_for_learning(server, key["carl"])
    assert server.delete(f"/v1/models/story/examples/{erased}", key=key["carl"])[0] == 200
    wait_for_learning(server, key["carl"])
    assert server.put("/v1/models/story/branch/state", exported, key["carl"])[0] == 200
    add_example(server, key["carl"], "A last lamp.")
    wait_for_learning(server, key["carl"])
    trained, id = prompt_logprobs(server, key["bob"]), created_keys["carl"][0].id
    assert prompt_logprobs(server, key["carl"]) != trained
    code, _, error = call("deployments", "rollback", "story")
    assert code == 2 and "--key" in error
    code, output, error = call("deployments", "rollback", "story", "--to", "0", "--key", id)
    assert code == 0 and "current version 0" in output, error
    assert prompt_logprobs(server, key["carl"]) == trained
    code, _, error = call("deployments", "rollback", "story", "--to", "1")  # a branch at version 0 counts too
    assert code == 2 and "--key" in error
    assert call("deployments", "freeze", "story")[0] == 0
    assert server.post("/v1/models/story/examples", {"text": "no"}, key["carl"])[0] == 409
    assert server.get("/v1/models/story/branch", key["carl"])[1]["learning"] is False
    assert call("deployments", "unfreeze", "story")[0] == 0
    add_example(server, key["carl"], "yes")
    kinds = {decision["kind"] for decision in json.loads(call("deployments", "log", "story", "--json")[1])}
    assert {"learned", "rollback", "restored", "erased", "freeze", "unfreeze"} <= kinds
    text = call("deployments", "log", "story")[1]
    assert f"story/{id}" in text and "by command line" in text
    code, _, error = call("deployments", "log", "stary")
    assert code == 2 and "story" in error and error.count("\n") == 1
    listed = call("keys", "list")[1]
    assert id in listed and key["carl"] not in listed


def test_only_an_admin_key_rolls_back_over_http(server, key, created_keys):
    id = created_keys["anna"][0].id
    add_example(server, key["anna"], "The lamp was grey. " * 20)
    wait_for_learning(server, key["anna"])
    assert server.post("/v1/models/story/rollback", {"version": 0, "owner_key": id}, key["anna"])[0] == 403
    assert server.post("/v1/models/story/rollback", {"version": 0, "owner_key": id}, key["admin"])[0] == 200
    assert prompt_logprobs(server, key["anna"]) == prompt_logprobs(server, key["bob"])
    assert server.post("/v1/models/story/rollback", {"version": 10**6}, key["admin"])[0] == 400
    assert server.post("/v1/models/story/rollback", {"owner_key": "nobody"}, key["admin"])[0] == 404


def test_an_admin_key_forks_a_branch(server, key, created_keys):
    add_example(server, key["carl"], "The lamp was blue. " * 20)
    wait_for_learning(server, key["carl"])
    body = {"target_key": created_keys["dora"][0].id, "owner_key": created_keys["carl"][0].id}
    assert prompt_logprobs(server, key["dora"]) != prompt_logprobs(server, key["carl"])
    assert server.post("/v1/models/story/branch/fork", body, key["carl"])[0] == 403
    assert server.post("/v1/models/story/branch/fork", body, key["admin"])[0] == 200
    assert prompt_logprobs(server, key["dora"]) == prompt_logprobs(server, key["carl"])
    branch, version = (server.get("/v1/models/story/branch", key[name])[1] for name in ("dora", "carl"))
    origin = f"forked from version {version['current_version']} of key {created_keys['carl'][0].id}"
    assert branch["version_description"] == branch["decisions"][0]["version_description"] == origin
    assert branch["decisions"][0]["kind"] == "forked" and origin in branch["decisions"][0]["reason"]
    add_example(server, key["dora"], "The lamp was black. " * 20)
    wait_for_learning(server, key["dora"])
    assert prompt_logprobs(server, key["dora"]) != prompt_logprobs(server, key["carl"])
    for invalid in ({"target_key": "nobody"}, body | {"owner_key": "nobody"}):
        assert server.post("/v1/models/story/branch/fork", invalid, key["admin"])[0] == 404


def test_one_unavailable_branch_is_answered_with_503_and_the_others_go_on(server, key, state_dir, created_keys):
    """The only copy of a restored state is deleted, and the server cannot learn it again."""
    path = "/v1/models/story/branch"
    exported = server.get(f"{path}/state", key["erin"])[1]
    arrays, metadata = decode_state(exported), read_metadata(exported, "branch")
    arrays["scratch.num_steps"] = arrays["scratch.num_steps"] + 1000  # no version of this server has these weights
    state = encode_state("branch", arrays, {name: metadata[name] for name in ("trained_digest", "learner_digest")})
    status, version = server.put(f"{path}/state", state, key["erin"])
    assert status == 200 and version["source_branch"] is None
    assert server.get(path, key["erin"])[1]["version_description"] == "restored from an export"
    (state_dir / "snapshots" / version["snapshot"]).unlink()
    body = {"model": "story", "prompt": "The", "max_tokens": 1, "learn": False}
    for _ in range(2):
        status, content = server.post("/v1/completions", body, key["erin"])
        assert (status, content["error"]["code"]) == (503, "branch_unavailable")
        assert version["snapshot"] in content["error"]["message"]
        assert server.get(f"{path}/state", key["erin"])[0] == 503
    assert server.post("/v1/completions", body, key["bob"])[0] == server.get("/ready")[0] == 200
    add_example(server, key["bob"], "The lamp was silver. " * 20)
    wait_for_learning(server, key["bob"])
    body_of_rollback = {"version": 0, "owner_key": created_keys["erin"][0].id}
    assert server.post("/v1/models/story/rollback", body_of_rollback, key["admin"])[0] == 200
    assert server.post("/v1/completions", body, key["erin"])[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("branch/fork", {"to": "x"}, "`to` was renamed `target_key`"),
        ("branch/fork", {"target_key": "x", "owner": "y"}, "`owner` was renamed `owner_key`"),
        ("rollback", {"version": 0, "owner": "x"}, "`owner` was renamed `owner_key`"),
    ],
)
def test_an_old_field_is_answered_with_its_new_name(server, key, path, body, words):
    status, content = server.post(f"/v1/models/story/{path}", body, key["admin"])
    assert status == 400 and words in content["error"]["message"]


def test_states_restored_by_a_client_that_hung_up_are_dropped(server, key):
    path = "/v1/models/story/branch"
    state = server.get(f"{path}/state", key["dora"])[1]
    before = server.get(path, key["dora"])[1]["current_version"]
    headers = {"Authorization": f"Bearer {key['dora']}", "Content-Type": "application/octet-stream"}
    for _ in range(40):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("PUT", f"{path}/state", state, headers)
        connection.close()
    after = wait_until(lambda: server.put(f"{path}/state", state, key["dora"])[1].get("number"))
    assert after - before < 20
    assert server.get(path, key["dora"])[1]["current_version"] == after


# --- sessions of texts


def test_a_text_is_continued_exported_restored_and_forked(server, key):
    path = "/v1/models/story/sessions"

    def complete(id, prompt="", max_tokens=12):
        body = {"prompt": prompt, "max_tokens": max_tokens, "seed": 5}
        status, content = server.post(f"{path}/{id}/completions", body, key["erin"])
        assert status == 200, content
        return content

    id = server.post(path, {}, key["erin"])[1]["id"]
    assert server.post(f"{path}/{id}/completions", {}, key["anna"])[0] == 404  # another key's
    assert complete(id, "Once there was a lamp", 0)["text"] == ""
    state = server.get(f"{path}/{id}/state", key["erin"])[1]
    twin = server.post(f"{path}/{id}/fork", {}, key["erin"])[1]["id"]
    continued = complete(id)
    assert complete(twin)["text"] == continued["text"]
    assert continued["num_steps"] == 21 + 12 == complete(twin, "", 0)["num_steps"]
    complete(id, "XYZ 0123456789 XYZ", 0)
    different = complete(id)
    assert server.put(f"{path}/{id}/state", state, key["erin"])[1]["num_steps"] == 21
    assert complete(id) == continued != different
    long = complete(id, "word " * 40, 60)  # longer than the context window of 64
    assert long["usage"] == {"prompt_tokens": 200, "completion_tokens": 60, "total_tokens": 260}
    full = server.get(f"{path}/{id}/state", key["erin"])[1]
    after = complete(id)["text"]
    server.put(f"{path}/{id}/state", full, key["erin"])
    assert complete(id)["text"] == after
    for broken in (state[:-5], b"", state[:-1] + b"\xff"):
        assert server.put(f"{path}/{id}/state", broken, key["erin"])[0] == 400
    add_example(server, key["erin"], "The lamp was white. " * 20)
    wait_for_learning(server, key["erin"])
    status, content = server.put(f"{path}/{id}/state", state, key["erin"])
    assert (status, content["error"]["code"]) == (400, "state_rejected") and "belongs to weights" in str(content)
    assert complete(id)["weights_digest"] != continued["weights_digest"]  # prefilled again by the new weights
    assert server.delete(f"{path}/{id}", key=key["erin"])[0] == 200
    assert server.get(f"{path}/{id}", key["erin"])[0] == 404


@pytest.mark.parametrize(
    ("sessions", "name", "kind"),
    [
        ("/v1/models/story/sessions", "text_session", "session state"),
        ("/v1/agents/bandit/sessions", "agent_session", "session state"),
        (None, "branch", "branch state"),
    ],
)
def test_an_uploaded_state_of_format_1_is_rejected_and_changes_nothing(server, key, sessions, name, kind):
    old = (OLD_STATES / f"{name}.safetensors").read_bytes()
    path = "/v1/models/story/branch"
    if sessions is not None:
        path = f"{sessions}/{server.post(sessions, {}, key['dora'])[1]['id']}"
    before = server.get(path, key["dora"])[1]
    status, content = server.put(f"{path}/state", old, key["dora"])
    assert (status, content["error"]["code"]) == (400, "state_rejected")
    assert f"is a {kind} of format 1; this version reads format 2. Commit e4ec9bd" in content["error"]["message"]
    assert server.get(path, key["dora"])[1] == before


# --- agents


def test_an_outside_program_is_the_environment(server, key):
    path = "/v1/agents/bandit/sessions"
    id = server.post(path, {"seed": 3}, key["bob"])[1]["id"]
    score, action = 0.0, server.post(f"{path}/{id}/act", {"observation": 0, "first": True}, key["bob"])[1]["action"]
    for _ in range(60):
        reward = float(action == 2)
        score += reward
        server.post(f"{path}/{id}/feedback", {"reward": reward}, key["bob"])
        action = server.post(f"{path}/{id}/act", {"observation": 0, "first": True}, key["bob"])[1]["action"]
    assert score > 25  # chance is 12
    assert server.get(f"{path}/{id}", key["anna"])[0] == 404  # another key's


def test_a_session_is_exported_restored_and_forked(server, key):
    path = "/v1/agents/mdp/sessions"

    def step(id, state, reward):
        body = {"observation": state, "outcome": {"gain": reward}} if reward is not None else {"observation": state}
        status, content = server.post(f"{path}/{id}/act", body, key["bob"])
        assert status == 200, content
        return content

    id = server.post(path, {"seed": 1}, key["bob"])[1]["id"]
    initial = server.get(f"{path}/{id}", key["bob"])[1]["weights_digest"]
    step(id, 0, None)
    for i in range(8):
        step(id, i % 3, 1.0)
    state = server.get(f"{path}/{id}/state", key["bob"])[1]
    twin = server.post(f"{path}/{id}/fork", {}, key["bob"])[1]["id"]
    steps = [step(id, i % 4, float(i == 2)) for i in range(6)]
    assert steps[0]["weights_digest"] != initial  # online: the weights learn
    assert [s["action"] for s in steps] == [step(twin, i % 4, float(i == 2))["action"] for i in range(6)]
    assert server.put(f"{path}/{id}/state", state, key["bob"])[1]["num_steps"] == 9
    assert [step(id, i % 4, float(i == 2))["weights_digest"] for i in range(6)] == [s["weights_digest"] for s in steps]
    bandit = server.post("/v1/agents/bandit/sessions", {}, key["bob"])[1]["id"]
    for broken in (state[:-5], b"", state.replace(b'"num_steps":"9"', b'"num_steps":"8"')[:-1] + b"\xff"):
        assert server.put(f"{path}/{id}/state", broken, key["bob"])[0] == 400
    assert server.put(f"/v1/agents/bandit/sessions/{bandit}/state", state, key["bob"])[0] == 400
    assert server.delete(f"{path}/{id}", key=key["bob"])[0] == 200
    assert server.get(f"{path}/{id}", key["bob"])[0] == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feedback", {"\ud800": 1}),
        ("feedback", {"observation": 1}),
        ("feedback", {"outcome": "x"}),
        ("feedback", {"reward": 10**400}),
        ("feedback", {"outcome": {"gain": 1.0}, "terminated": [1]}),
        ("feedback", "[" * 2000),
        ("agent", "\ud800"),
    ],
)
def test_a_crafted_state_of_an_agent_is_rejected_in_one_sentence(server, key, field, value):
    path = "/v1/agents/mdp/sessions"
    id = server.post(path, {}, key["bob"])[1]["id"]
    server.post(f"{path}/{id}/act", {"observation": 0}, key["bob"])
    state = server.get(f"{path}/{id}/state", key["bob"])[1]
    size = int.from_bytes(state[:8], "little")
    header = json.loads(state[8 : 8 + size])
    header["__metadata__"][field] = value if isinstance(value, str) else json.dumps(value)
    crafted = json.dumps(header).encode()
    status, content = server.put(
        f"{path}/{id}/state", len(crafted).to_bytes(8, "little") + crafted + state[8 + size :], key["bob"]
    )
    assert (status, content["error"]["code"]) == (400, "state_rejected")


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
def test_input_that_does_not_fit_an_agent_is_rejected(server, key, path, body):
    id = server.post("/v1/agents/bandit/sessions", {}, key["bob"])[1]["id"]
    status, content = server.post(f"/v1/agents/bandit/sessions/{id}/{path}", body, key["bob"])
    assert status == 400 and content["error"]["message"]


# --- after a crash


def test_acknowledged_examples_survive_kill_9(run, monkeypatch, capsys):
    """One kill while examples are learned; the slow test makes 20, and `benchmarks/crash.py` 200."""
    monkeypatch.setattr(crash, "start", lambda command, log: forking.start(command, optimized_environment(), log, log))
    monkeypatch.setattr(sys, "argv", ["crash.py", str(run), "--kills", "1", "--seed", "1"])
    with pytest.raises(SystemExit) as end:
        crash.main()
    output = capsys.readouterr().out
    assert end.value.code == 0, output
    assert json.loads(output)["setting"]["acknowledged"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("family", "learning"), [("qwen3", "adapter_rank=0"), ("llama3", "adapter_rank=4")])
def test_acknowledged_examples_of_each_family_survive_kill_9(tmp_path_factory, family, learning):
    run = family_run(tmp_path_factory, family)
    command = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), str(run), "--kills", "2", "--learning", learning]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=optimized_environment())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_acknowledged_examples_survive_twenty_kills(run):
    command = [sys.executable, str(ROOT / "benchmarks" / "crash.py"), str(run), "--kills", "20", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


# --- commands that are rejected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alias", "storyrun"], "NAME=RUN"),
        (["--alias", "a/b=nowhere"], "cannot be the name of a deployment"),
        (["nowhere"], "there is no run in 'nowhere'"),
        ([], "at least one run"),
        (["--log-level", "all"], "'log_level' in [serve] must be"),
        (["--port", "70000"], "'port' in [serve] must be less than or equal to 65535"),
        (["--learning", "decay_rate=0.1"], "needs 'online'"),
        (["--reference-text", "absent.txt"], "the setting 'reference_text', which needs 'online'"),
        (["--shared-branch"], "the setting 'shared_branch', which needs 'online'"),
    ],
)
def test_an_invalid_command_is_rejected_in_one_sentence(tmp_path, call_cli, arguments, words):
    code, output, error = call_cli("serve", *arguments, "--state-dir", str(tmp_path / "state"))
    assert code == 2 and words in error and error.count("\n") == 1, error
    assert output == ""


def test_a_server_without_keys_is_not_reachable_from_other_machines(run, tmp_path, call_cli):
    command = ("serve", "--host", "0.0.0.0", "--alias", f"story={run}", "--state-dir", str(tmp_path / "state"))
    code, output, error = call_cli(*command)
    assert code == 2 and "keys create" in error and error.count("\n") == 1, error
    assert output == ""


@pytest.mark.sqlite  # several servers may share a PostgreSQL database
def test_a_state_folder_belongs_to_one_server(server, run, state_dir, call_cli):
    code, _, error = call_cli("serve", "--alias", f"story={run}", "--state-dir", str(state_dir))
    assert code == 2 and "another process is working" in error
