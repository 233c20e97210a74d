"""Writes `harness/golden.json`: what lm_eval's own `hf` model (transformers, torch) scores in the tasks of `harness/`.

Run by `make golden`, after `make_gpt2.py`; `tests/test_harness.py` compares.
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
    def task(name: str, kind: str, metrics: list[str], **more: Any) -> dict[str, Any]:
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(HERE / f"{name}.jsonl")}}}
        found = {"task": name, "output_type": kind, "test_split": "test"} | data | more
        return found | {"metric_list": [{"metric": metric} for metric in metrics]}

    choices = {"doc_to_choice": "{{choices}}", "doc_to_target": "answer", "doc_to_text": "{{question}}"}
    ends = {"generation_kwargs": {"until": ["the", "."], "max_gen_toks": 12, "do_sample": False}}
    asked = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    return [
        task("choices", "multiple_choice", ["acc", "acc_norm"], **choices),
        task("pages", "loglikelihood_rolling", ["bits_per_byte"], doc_to_text="", doc_to_target="{{page}}"),
        task("answers", "generate_until", ["exact_match"], **asked, **ends),
    ]


def found(model: Any) -> dict[str, Any]:
    """For each task its metrics, and for each document what the model answered."""
    import lm_eval

    results = lm_eval.simple_evaluate(model, tasks=tasks(), bootstrap_iters=0)
    assert results is not None
    kept = {}
    for name in DATA:
        metrics = {key: value for key, value in results["results"][name].items() if isinstance(value, float)}
        answers = [sample["filtered_resps"] for sample in results["samples"][name]]
        kept[name] = {"metrics": metrics, "answers": answers}
    return json.loads(json.dumps(kept))


def main() -> None:
    from lm_eval.models.huggingface import HFLM

    for name, documents in DATA.items():
        lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in documents]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    model = HFLM(pretrained=str(MODEL), device="cpu", dtype="float32", batch_size=4, max_length=64)
    (HERE / "golden.json").write_text(json.dumps(found(model), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
