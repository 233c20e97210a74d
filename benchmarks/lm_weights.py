"""Perplexity with weights in bfloat16, float16 and int8, beside that with float32.

    python benchmarks/lm_weights.py RUN --text TEXT
    python benchmarks/lm_weights.py runs/shakespeare            # the text that the run held out
    python benchmarks/lm_weights.py tests/golden/* --text TEXT --bytes 4000

One JSON line for each model and type: `value` is the perplexity, `peer_value` that of float32, `ratio` their quotient,
`difference` the mean difference of the loss in nats per token, and `se` its standard error over segments of the text.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ontogeny import kernels
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.errors import BadInput
from ontogeny.lm import evaluation
from ontogeny.lm import model as models

TYPES = ("bfloat16", "float16", "int8")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="runs of `ontogeny lm train`, or Hugging Face folders")
    parser.add_argument("--text", type=Path, help="text to score; by default the one that a run held out")
    parser.add_argument("--bytes", type=int, default=None, help="bytes of the text to score")
    arguments = parser.parse_args()
    configure_jax(None)
    text = None if arguments.text is None else arguments.text.read_text(encoding="utf-8")[: arguments.bytes]
    for folder in arguments.models:
        try:
            exact = score(folder, "float32", text)
        except BadInput as error:  # a folder of another kind beside the models
            print(json.dumps({"name": f"lm_weights: {folder.name}", "value": None, "error": str(error)}), flush=True)
            continue
        for weights in TYPES:
            started_at = time.perf_counter()
            rounded = score(folder, weights, text)
            segment = rounded.segment_size
            differences = rounded.losses - exact.losses
            parts = range(0, len(differences), segment)
            means = np.array([differences[first : first + segment].mean() for first in parts])
            record = {"name": f"lm_weights: {folder.name}, {weights}", "value": round(rounded.perplexity.mean, 4)}
            record |= {
                "unit": "perplexity",
                "se": None,
                "peer": "float32",
                "peer_value": round(exact.perplexity.mean, 4),
            }
            record |= {"ratio": round(rounded.perplexity.mean / exact.perplexity.mean, 6)}
            record |= {"difference": float(f"{differences.mean():.3g}")}
            if len(means) > 1:
                record["se"] = float(f"{means.std(ddof=1) / len(means) ** 0.5:.2g}")
            record |= {"seconds": round(time.perf_counter() - started_at, 2)}
            setting = {"num_tokens": rounded.num_tokens, "path": kernels.describe_path()}
            print(json.dumps(record | {"setting": setting}), flush=True)


def score(folder: Path, weights: str, text: str | None) -> evaluation.TextEvaluation:
    """Scores a text by a model with its weights in this type."""
    model = models.load(folder, weights=weights)
    if text is None:
        return evaluation.evaluate_held_out(model)
    return evaluation.evaluate(model, text, allow_overlap=True)


if __name__ == "__main__":
    main()
