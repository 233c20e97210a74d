"""The model of ontogeny in EleutherAI's lm_eval has the scores of its `hf` model on the same weights, task by task.

`tests/golden/make_harness.py` wrote the expected scores. `make parity` installs lm_eval and runs this file.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of libraries that lm_eval imports
if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
    pytest.importorskip("lm_eval", reason="`make parity` installs lm_eval")


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "harness" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def make_harness():
    """The script that wrote the expected scores."""
    spec = importlib.util.spec_from_file_location("make_harness", GOLDEN / "make_harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scores(make_harness, tmp_path_factory):
    from ontogeny.engine.harness import HarnessModel

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")):
            patch.setenv(name, value)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield make_harness.evaluate(HarnessModel(GOLDEN / "gpt2", batch_size=3))


@pytest.mark.parametrize("task", ["choices", "pages", "answers"])
def test_scores_equal_those_of_the_hf_model_of_lm_eval(scores, golden, task):
    assert scores[task]["metrics"] == pytest.approx(golden[task]["metrics"], abs=1e-5)
    if task == "answers":
        assert scores[task]["answers"] == golden[task]["answers"]
        return
    for answer, expected in zip(scores[task]["answers"], golden[task]["answers"], strict=True):
        pairs = zip(np.ravel(np.array(answer, object)), np.ravel(np.array(expected, object)), strict=True)
        for number, expected_number in pairs:
            assert to_float(number) == pytest.approx(to_float(expected_number), abs=1e-3)


def to_float(answer):
    """A log-probability, or whether a continuation is greedy as 0 or 1; lm_eval keeps both as strings."""
    return float({"True": 1, "False": 0}.get(str(answer), answer))


def test_requests_that_exceed_the_context_are_rejected():
    from lm_eval.api.instance import Instance

    from ontogeny.engine.harness import HarnessModel
    from ontogeny.errors import BadInput

    harness = HarnessModel(GOLDEN / "gpt2")
    request = Instance("loglikelihood", {}, ("You", " may not use this file" * 40), 0)
    with pytest.raises(BadInput, match="the model scores 1 to 64 at once"):
        harness.loglikelihood([request])
    request = Instance("generate_until", {}, ("You", {"max_gen_toks": 64}), 0)
    with pytest.raises(BadInput, match="leaves no space in a context of 64"):
        harness.generate_until([request])


def test_repeats_of_a_sampled_request_are_different():
    from lm_eval.api.instance import Instance

    from ontogeny.engine.harness import HarnessModel

    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20}
    requests = [Instance("generate_until", {}, ("You", settings), 0) for _ in range(3)]
    harness = HarnessModel(GOLDEN / "gpt2", batch_size=2)
    answers = harness.generate_until(requests)
    assert len(set(answers)) == 3 and answers == harness.generate_until(requests)
