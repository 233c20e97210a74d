"""Writes `harness/golden.json`: the scores of lm_eval's `hf` model (transformers, torch) in the tasks of `harness/`.

`make golden` runs this script after `make_models.py`. `tests/test_harness.py` compares with its file.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
HERE = Path(__file__).parent / "harness"
MODEL = Path(__file__).parent / "gpt2"
DATA = {
    "choices": [
        {"question": "You may reproduce copies of the", "choices": [" Work", " sea", " licence of"], "answer": 0},
        {"question": "the terms and", "choices": [" stones", " conditions", " of the terms"], "answer": 1},
        {"question": "Licensor shall mean the copyright", "choices": [" and", " owner or entity", " a"], "answer": 1},
        {"question": "", "choices": ["a", "Work", "You"], "answer": 2},
    ],
    "pages": [
        {"page": "Work shall mean the work of authorship, made available under the License."},
        {
            "page": "Naïve café – 中文. "
            + "Each Contributor hereby grants to You a perpetual, worldwide patent license. " * 4
        },
    ],
    "answers": [
        {"question": "You may add Your own", "answer": "copyright"},
        {"question": "Unless required by applicable law or agreed to in writing", "answer": ","},
        {"question": "A", "answer": "B"},
    ],
}


def tasks() -> list[dict[str, Any]]:
    """The configurations of the tasks, as lm_eval reads them."""

    def task(name: str, kind: str, metrics: list[str], **settings: Any) -> dict[str, Any]:
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(HERE / f"{name}.jsonl")}}}
        config = {"task": name, "output_type": kind, "test_split": "test"} | data | settings
        return config | {"metric_list": [{"metric": metric} for metric in metrics]}

    choices = {"doc_to_choice": "{{choices}}", "doc_to_target": "answer", "doc_to_text": "{{question}}"}
    ends = {"generation_kwargs": {"until": ["the", "."], "max_gen_toks": 12, "do_sample": False}}
    prompts = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    return [
        task("choices", "multiple_choice", ["acc", "acc_norm"], **choices),
        task("pages", "loglikelihood_rolling", ["bits_per_byte"], doc_to_text="", doc_to_target="{{page}}"),
        task("answers", "generate_until", ["exact_match"], **prompts, **ends),
    ]


def evaluate(model: Any) -> dict[str, Any]:
    """The metrics of each task, and the answer of the model to each document."""
    import lm_eval

    results = lm_eval.simple_evaluate(model, tasks=tasks(), bootstrap_iters=0)
    assert results is not None
    scores = {}
    for name in DATA:
        metrics = {key: value for key, value in results["results"][name].items() if isinstance(value, float)}
        answers = [sample["filtered_resps"] for sample in results["samples"][name]]
        scores[name] = {"metrics": metrics, "answers": answers}
    return json.loads(json.dumps(scores))


def main() -> None:
    """Writes the documents of the tasks and the scores."""
    from lm_eval.models.huggingface import HFLM

    for name, documents in DATA.items():
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    model = HFLM(pretrained=str(MODEL), device="cpu", dtype="float32", batch_size=4, max_length=64)
    text = json.dumps(evaluate(model), indent=1, ensure_ascii=False)
    (HERE / "golden.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
