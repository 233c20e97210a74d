"""A model of ours in EleutherAI's lm_eval scores what its own `hf` model scores on the same weights, task by task.

`tests/golden/make_harness.py` wrote what is compared with; `make parity` installs lm_eval and runs this file.
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.filterwarnings("ignore")  # of what lm_eval imports
if os.environ.get("ONTOGENY_REQUIRE_TORCH") != "1":
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: `make parity` brings it")


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "harness" / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_harness", GOLDEN / "make_harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answered(make, tmp_path_factory):
    from ontogeny.engine.harness import HarnessModel

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1")):
            patch.setenv(name, value)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield make.found(HarnessModel(GOLDEN / "gpt2", batch_size=3))


@pytest.mark.parametrize("task", ["choices", "pages", "answers"])
def test_scores_are_those_of_lm_evals_own_model(answered, golden, task):
    assert answered[task]["metrics"] == pytest.approx(golden[task]["metrics"], abs=1e-5)
    if task == "answers":
        assert answered[task]["answers"] == golden[task]["answers"]
        return
    for ours, theirs in zip(answered[task]["answers"], golden[task]["answers"], strict=True):
        pairs = zip(np.ravel(np.array(ours, object)), np.ravel(np.array(theirs, object)), strict=True)
        for one, other in pairs:
            assert float_of(one) == pytest.approx(float_of(other), abs=1e-3)


def float_of(answer):
    return float({"True": 1, "False": 0}.get(str(answer), answer))


def test_what_cannot_be_scored_is_said():
    from types import SimpleNamespace

    from ontogeny.engine.harness import HarnessModel
    from ontogeny.errors import BadInput

    harness = HarnessModel(GOLDEN / "gpt2")
    with pytest.raises(BadInput, match="the model scores 1 to 64 at once"):
        harness.loglikelihood([SimpleNamespace(args=("You", " may not use this file" * 40))])
    with pytest.raises(BadInput, match="leaves no space in a context of 64"):
        harness.generate_until([SimpleNamespace(args=("You", {"max_gen_toks": 64}))])
