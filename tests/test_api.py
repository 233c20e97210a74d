"""The public API: what `import ontogeny` offers, its documentation, and runs from training to a loaded agent."""

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import jax
import pytest

import ontogeny
from ontogeny import BadInput, cli
from ontogeny.runs import formats, kinds
from ontogeny.runs.folder import claim
from ontogeny.runs.records import append_record
from ontogeny.validation import FrozenModel

FUNCTIONS = [name for name in ontogeny.__all__ if name[0].islower() and name != "lm"]
SPEC = {"env": "bandit:num_arms=3,num_pulls=5", "agent": "ucb1", "development": "single_lifetime:num_lifetimes=2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ontogeny.train(SPEC, tmp_path_factory.mktemp("runs") / "ucb1")


def test_the_names_are_declared_and_the_package_is_typed():
    assert set(ontogeny.__all__) <= set(dir(ontogeny))
    assert all(callable(getattr(ontogeny, name)) for name in FUNCTIONS)
    assert all(callable(getattr(ontogeny.lm, name)) for name in ("load", "train", "evaluate"))
    assert Path(ontogeny.__file__).with_name("py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ontogeny.nothing


def test_importing_the_package_imports_no_heavy_library():
    program = "import sys, ontogeny\nassert not {'jax', 'numpy', 'pydantic', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def documented_arguments(function) -> dict[str, str]:
    """The entries of the section Args of a docstring."""
    section = re.search(r"Args:\n(.*?)(\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    entries = re.split(r"\n(?=    \w)", section.group(1)) if section else []
    return {name.strip(): text.strip() for name, _, text in (entry.partition(":") for entry in entries)}


@pytest.mark.parametrize("name", [*FUNCTIONS, "lm.evaluate", "lm.load", "lm.train"])
def test_every_public_function_documents_what_it_returns(name):
    assert "\n\nReturns:\n    " in inspect.getdoc(attrgetter(name)(ontogeny))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented_with_more_than_its_name(name):
    function = getattr(ontogeny, name)
    arguments = documented_arguments(function)
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter.name} is not annotated"
        text = arguments.get(parameter.name, "")
        words = set(re.findall(r"[a-z]+", text.lower()))
        repeated = set(re.findall(r"[a-z]+", f"{parameter.name} {parameter.annotation}".lower()))
        assert words - repeated - {"the", "a", "an", "of", "its"}, f"{name}: '{parameter.name}' is not documented"


def test_an_agent_is_built_and_steps_through_an_environment():
    env = ontogeny.make_env("bandit", num_arms=3, num_pulls=20)
    agent = ontogeny.make_agent("thompson", env)
    steering = ontogeny.make_steering(env)
    state = agent.init(jax.random.key(0), agent.genome(jax.random.key(1)))
    _, trajectory = ontogeny.rollout(jax.random.key(2), agent, env, steering, state, 20, False)
    assert trajectory.action.shape == (20,) and trajectory.reward.sum() == trajectory.outcome.sum()
    evaluation = ontogeny.evaluate(agent, env, steering, agent.genome(jax.random.key(1)), num_tasks=4, seed=0)
    assert evaluation.totals.shape == (4,)
    with pytest.raises(BadInput, match="`arms` was renamed `num_arms`"):
        ontogeny.make_env("bandit", arms=3)
    with pytest.raises(BadInput, match="no agent 'thomson'"):
        ontogeny.make_agent("thomson", env)


def test_plugins_are_listed():
    assert {"bandit", "chain"} <= set(ontogeny.list_plugins("environments"))
    assert "thompson" in ontogeny.list_plugins("agents")


def test_load_and_open_an_agent_run_and_a_saved_deployment(run, tmp_path):
    session = ontogeny.load(run)
    _, state = session.act(session.init(), 0)
    folder = session.save(state, tmp_path / "saved")
    assert ontogeny.load(folder).digest(state) == session.digest(state)
    opened = ontogeny.open_run(run)
    assert (opened.kind, opened.status, len(opened.records)) == ("agent run", "finished", 1)
    assert opened.spec["env"]["settings"] == {"num_arms": 3, "num_pulls": 5} and opened.spec["seed"] == 0
    assert (ontogeny.open_run(folder).kind, ontogeny.open_run(folder).status) == ("saved deployment", "finished")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "genome.json").unlink()
    assert ontogeny.open_run(unfinished).status == "unfinished"
    with pytest.raises(BadInput, match="is not finished; rerun the same command to resume it"):
        ontogeny.load(unfinished)


def test_a_hugging_face_folder_is_loaded_and_opened():
    folder = Path(__file__).parent / "golden" / "gpt2"
    assert ontogeny.load(folder).tokenizer.size > 0
    assert ontogeny.open_run(folder).kind == "Hugging Face folder"
    with pytest.raises(BadInput, match="its weights learn in"):
        ontogeny.load(folder, online=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the folder does not exist"),
        ({}, "is an empty folder, not a language-model run, a Hugging Face folder, an agent run"),
        ({"notes.txt": "text"}, "is a folder of other files, not"),
        ({"spec.json": "{}"}, "spec.json' is of no kind of run that this version knows"),
        ({"spec.json": "{"}, "spec.json' is damaged: it is not JSON"),
        ({"spec.json": ""}, "spec.json' is damaged: it is not JSON"),
        ({"spec.json": "[]"}, "spec.json' is damaged: it holds no JSON object"),
        ({"spec.json": json.dumps({"format": 9, "kind": "agent run"})}, "is an agent run of format 9; this version"),
    ],
)
def test_any_other_folder_is_refused_in_one_sentence(tmp_path, content, message):
    folder = tmp_path / "folder"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    for function in (ontogeny.load, ontogeny.open_run):
        with pytest.raises(BadInput, match=message) as error:
            function(folder)
        assert "\n" not in str(error.value) and "'" + str(folder) in str(error.value)
    with pytest.raises(BadInput, match="is a file, not the folder of a run"):
        ontogeny.load(__file__)


def test_a_run_of_another_kind_is_answered_with_its_commands(run):
    folder = Path(__file__).parent / "golden" / "gpt2"
    with pytest.raises(BadInput, match=r"is a Hugging Face folder, not an agent run.*; use `ontogeny lm evaluate`"):
        kinds.require_kind(folder, "agent run")
    with pytest.raises(BadInput, match=r"is an agent run, not a language-model run; use `ontogeny evaluate`"):
        kinds.require_kind(run, "language-model run")


@pytest.fixture(scope="module")
def language_model_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text.txt").write_text("The river carries the boat past the mill. " * 60)
    config = {"size": "pico", "tokenizer": "bytes", "num_layers": 1, "num_heads": 1, "width": 8, "context_length": 16}
    config |= {"batch_size": 2, "num_steps": 2}
    return ontogeny.lm.train(config, [folder / "text.txt"], folder / "run")


def test_a_language_model_run_is_loaded_and_opened(language_model_run, capsys, monkeypatch):
    model = ontogeny.load(language_model_run)
    assert len(model.tokenizer.encode("mill")) == 4
    opened = ontogeny.open_run(language_model_run)
    assert (opened.kind, opened.status) == ("language-model run", "finished")
    assert [record["step"] for record in opened.records if "loss" in record] == [1, 2]
    assert opened.spec["files"][0]["name"] == "text.txt"
    (completion,) = ontogeny.generate(model, ["The river"], max_tokens=4)
    assert len(completion.tokens) <= 4
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(language_model_run / "unused"))
    for command in ("evaluate", "deploy"):
        monkeypatch.setattr(sys, "argv", ["ontogeny", command, str(language_model_run)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        complaint = capsys.readouterr().err
        assert end.value.code == 2 and complaint.count("\n") == 1
        assert "is a language-model run, not an agent run" in complaint and "`ontogeny lm evaluate`" in complaint


def test_a_study_without_a_plan_is_damaged(tmp_path):
    with claim(tmp_path / "study", formats.STUDY, {"title": "A study"}) as folder:
        pass
    with pytest.raises(BadInput, match=r"spec\.json' is damaged: it lacks the list 'planned_ids'"):
        ontogeny.open_run(folder)


def test_a_study_is_opened_but_not_loaded(tmp_path):
    with claim(
        tmp_path / "study", formats.STUDY, {"title": "A study"}, prepare=lambda _: {"planned_ids": ["a"]}
    ) as folder:
        assert ontogeny.open_run(folder).status == "unfinished"
        append_record(folder / "records.jsonl", {"id": "a"})
    opened = ontogeny.open_run(folder)
    assert (opened.kind, opened.status, opened.spec) == ("study", "finished", {"title": "A study"})
    with pytest.raises(
        BadInput, match="is a study, which holds no single agent or language model; use `ontogeny report`"
    ):
        ontogeny.load(folder)


def test_every_setting_and_spec_has_a_json_schema():
    for package in ("audit.prequential.certificate", "server.learning.branches", "lm.training", "studies.spec"):
        importlib.import_module(f"ontogeny.{package}")
    models = list(FrozenModel.__subclasses__())
    assert len(models) >= 8
    for model in models:
        assert model.model_json_schema()["properties"], model
