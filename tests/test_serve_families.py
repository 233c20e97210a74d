"""A server with models of several families: unmodified clients, chat templates, ends of answers, batch invariance."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import openai
import pytest

import texts
from ontogeny import kernels
from ontogeny.engine import generate
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams
from ontogeny.errors import BadInput
from ontogeny.lm import model as models
from ontogeny.lm import online_learner
from ontogeny.lm.training import train
from ontogeny.server import keys
from ontogeny.server.learning import learner
from ontogeny.server.learning.branches import BranchManager
from ontogeny.server.store import Store
from serving import ServerProcess, wait_until

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm3")
GREEDY = SamplingParams(temperature=0.0)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the License?"}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The golden folders; that of Qwen3 has a chat template."""
    folder = tmp_path_factory.mktemp("families")
    copies = {family: Path(shutil.copytree(GOLDEN / family, folder / family)) for family in FAMILIES}
    shutil.copy(GOLDEN / "chat" / "tools_as_json.jinja", copies["qwen3"] / "chat_template.jinja")
    config = copies["qwen3"] / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"max_position_embeddings": 512}))  # for whole conversations
    return copies


@pytest.fixture(scope="module")
def client(folders, tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("http") / "state"
    store = Store(state_dir)
    key = keys.create_key(store, "anna")[1]
    store.close()
    aliases = [part for family, folder in folders.items() for part in ("--alias", f"{family}={folder}")]
    limit = ("--max-kv-cache-bytes", "240000") if kernels.is_active() else ()  # less than a context of 512 needs
    with ServerProcess(state_dir, *aliases, *limit) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            yield client
        assert "Traceback" not in server.log.read_text()
        assert server.stop() in (0, -15)


def complete(client, family, prompt, **settings):
    choice = client.completions.create(model=family, prompt=prompt, max_tokens=12, **settings).choices[0]
    return choice.text, choice.logprobs and tuple(choice.logprobs.token_logprobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_server_continues_a_prompt_as_the_command_line_does(client, folders, family):
    model = models.load(folders[family])
    prompts = json.loads((GOLDEN / family / "golden.json").read_text(encoding="utf-8"))["prompts"]
    for prompt in prompts:
        expected = generate.generate(model, [prompt], max_tokens=12, sampling_params=GREEDY)[0]
        assert complete(client, family, prompt, temperature=0)[0] == expected.text


@pytest.mark.skipif(not kernels.is_active(), reason="XLA reserves the memory of all slots")
def test_a_request_that_never_fits_into_the_memory_for_keys_and_values_is_refused(client):
    with pytest.raises(
        openai.BadRequestError, match=r"an answer of 512 tokens together need .* and there are .* for all"
    ):
        client.completions.create(model="qwen3", prompt="The", max_tokens=600)
    assert client.completions.create(model="qwen3", prompt="The", max_tokens=12).choices


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_answers_have_the_same_bits_alone_and_in_company(client, family):
    prompts = [f"The License number {number}, which" for number in range(12)]

    def answer(number):
        return complete(client, family, prompts[number], temperature=0.8, seed=number, logprobs=2)

    answers = [answer(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(answer, range(12))) == answers


@pytest.mark.skipif(not kernels.is_active(), reason="XLA has programs of its own for the command line")
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_the_command_line_and_the_server_have_the_same_text_and_log_probabilities(client, folders, family, call_cli):
    """Alone and in company, cold and from the prefix cache."""
    model, params = models.load(folders[family]), SamplingParams(0.8, 0.9, seed=7)
    prompts = [f"The License number {number}, which shall be" for number in range(6)]

    def answer(prompt):
        return complete(client, family, prompt, temperature=0.8, top_p=0.9, seed=7, logprobs=2)

    command = f"lm generate {folders[family]} --max-tokens 12 --temperature 0.8 --top-p 0.9 --seed 7 --json --prompt"
    code, written, _ = call_cli(*command.split(), prompts[0])
    engine, scores = Engine(model.config), [list[float]() for _ in prompts]
    requests = [
        GenerationRequest(
            model.weights,
            tuple(generate.encode_prompt(model, prompt)),
            12,
            params,
            model.tokenizer.end_tokens,
            model.tokenizer.size,
            num_logprobs=2,
        )
        for prompt in prompts
    ]

    def collect(number, part):
        if isinstance(part, TokenOutput):
            scores[number].append(part.logprobs.logprob)

    engine.submit_all(requests, [partial(collect, number) for number in range(len(prompts))])
    engine.run()
    completions = [c.text for c in generate.generate(model, prompts, max_tokens=12, sampling_params=params)]
    separate = [answer(prompt) for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        for answers in (separate, list(pool.map(answer, prompts)), [answer(prompt) for prompt in prompts]):
            assert [text for text, _ in answers] == completions
            assert [list(logprobs) for _, logprobs in answers] == scores
    assert code == 0 and json.loads(written)["text"] == completions[0]


def test_a_conversation_is_written_by_the_template_of_the_model(client, folders):
    model = models.load(folders["qwen3"])
    assert model.chat_template is not None
    for tools in (None, TOOLS):
        text = model.chat_template.render(MESSAGES, tools=tools)
        expected = generate.generate_from_tokens(model, [model.tokenizer.encode(text).tolist()], 12, GREEDY)[0]
        response = client.chat.completions.create(
            model="qwen3", messages=MESSAGES, max_tokens=12, temperature=0, **({"tools": tools} if tools else {})
        )
        assert response.choices[0].message.content == expected.text
        assert response.usage.prompt_tokens == len(model.tokenizer.encode(text))


def test_calls_and_answers_of_tools_reach_the_template(client, folders):
    call = {"id": "a", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "ibis"}'}}
    messages = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "a bird"},
    ]
    response = client.chat.completions.create(model="qwen3", messages=messages, tools=TOOLS, max_tokens=1)
    model = models.load(folders["qwen3"])
    call["function"]["arguments"] = {"word": "ibis"}
    assert model.chat_template is not None
    text = model.chat_template.render(messages, tools=TOOLS)
    assert '"arguments": {"word": "ibis"}}' in text
    assert response.usage.prompt_tokens == len(model.tokenizer.encode(text))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("qwen2", {"tools": TOOLS}, "tools: only a model with a chat template of its own can use it"),
        ("qwen2", {"extra_body": {"chat_template_kwargs": {"a": 1}}}, "chat_template_kwargs: only a model with a chat"),
        (
            "qwen3",
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}]},
            "refuses",
        ),
    ],
)
def test_a_conversation_that_cannot_be_written_is_refused_in_one_sentence(client, model, settings, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**{"model": model, "messages": MESSAGES, "max_tokens": 1, **settings})


def test_words_of_the_model_without_a_token_are_refused_and_never_generated(client, folders):
    size = models.load(folders["qwen2"]).tokenizer.size
    with pytest.raises(openai.BadRequestError, match=f"token ids must be below {size}"):
        client.completions.create(model="qwen2", prompt=[size + 1], max_tokens=1)
    response = client.completions.create(model="qwen2", prompt="You may", max_tokens=40, temperature=2.0, seed=1)
    assert response.usage.completion_tokens == 40 or response.choices[0].finish_reason == "stop"


def test_an_answer_ends_at_every_token_that_the_model_names_as_an_end(tmp_path_factory, folders):
    model = models.load(folders["qwen3"])
    text = generate.generate(model, ["You may"], max_tokens=12, sampling_params=GREEDY)[0]
    third = text.tokens[2]
    config = folders["qwen3"] / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [model.tokenizer.end, third]}))
    try:
        ended = generate.generate(models.load(folders["qwen3"]), ["You may"], max_tokens=12, sampling_params=GREEDY)[0]
    finally:
        config.unlink()
    assert ended.tokens == text.tokens[: text.tokens.index(third) + 1] and ended.finish_reason == "end"


@pytest.mark.slow
@pytest.mark.parametrize("adapter_rank", [0, 2])
def test_a_fine_tuned_folder_learns_online_from_conversations(folders, tmp_path, adapter_rank):
    """The model keeps its chat template; what it has learned survives a restart, and is gone once it is erased."""
    settings = {"num_steps": 10, "context_length": 256, "adapter_rank": adapter_rank}
    run = train(settings, [texts.PROCEDURES], tmp_path / "run", initial=models.load(folders["qwen3"]))
    state_dir = tmp_path / "state"
    store = Store(state_dir)
    key = keys.create_key(store, "anna")[1]
    store.close()
    learning = f"learning_rate=0.001,adapter_rank={adapter_rank}"
    options = ["--alias", f"tuned={run}", "--online", "--max-forgetting", "1", "--learning", learning]
    text = "The heron waits at the weir. " * 12

    def open_client(server):
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)

    def nats(client):
        answer = client.completions.create(
            model="tuned", prompt=text[:60], max_tokens=1, echo=True, logprobs=0, extra_body={"learn": False}
        )
        return -sum(answer.choices[0].logprobs.token_logprobs[1:-1])

    def wait(client):
        wait_until(lambda: not client.get("/models/tuned/branch", cast_to=object)["num_pending"])

    with ServerProcess(state_dir, *options) as server, open_client(server) as client:
        before = nats(client)
        messages = [*MESSAGES, {"role": "assistant", "content": "A text."}, {"role": "user", "content": text}]
        response = client.chat.completions.create(model="tuned", messages=messages, max_tokens=4, temperature=0)
        template = models.load(run).chat_template
        assert template is not None
        assert response.usage.prompt_tokens == len(models.load(run).tokenizer.encode(template.render(messages)))
        wait(client)
        after = nats(client)
        assert after < before
    with ServerProcess(state_dir, *options) as server, open_client(server) as client:
        assert nats(client) == after
        for example in client.get("/models/tuned/examples", cast_to=object)["data"]:
            client.delete(f"/models/tuned/examples/{example['number']}", cast_to=object)
        wait(client)
        wait_until(lambda: nats(client) == before)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_folder_learns_online_with_a_reference_text(tmp_path, family):
    model, file = models.load(GOLDEN / family), tmp_path / "reference.txt"
    file.write_text(texts.read_training(), encoding="utf-8")
    config = online_learner.OnlineConfig(adapter_rank=2, chunk_size=8, learning_rate=1e-2)
    with pytest.raises(BadInput, match="--reference-text FILE"):
        learner.build(model, config)
    branches = [
        BranchManager(Store(tmp_path / name), "story", learner.build(model, config, [file], max_context=16))
        for name in ("first", "second")
    ]
    for manager in branches:
        for text in ("A lighthouse keeper wrote a letter to the sea. " * 3, "The sea answered, and he read it aloud."):
            manager.add_example("anna", "anna", text)
        while manager.learn_next():
            pass
    current = [manager.current("anna") for manager in branches]
    assert current[0].version.number == 2 and current[0].version.digest == current[1].version.digest
    assert branches[0].learner.digest != learner.build(model, config, [file], max_context=15).digest
    second_file = tmp_path / "second_file.txt"
    second_file.write_text("!" + texts.read_training(), encoding="utf-8")
    assert branches[0].learner.digest != learner.build(model, config, [second_file], max_context=16).digest
    second_file.write_text("Too short.", encoding="utf-8")
    with pytest.raises(BadInput, match="fewer than a context of 16"):
        learner.build(model, config, [second_file], max_context=16)
