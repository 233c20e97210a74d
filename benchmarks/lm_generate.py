"""Tokens per second of text generation, beside the `generate()` of transformers with the same weights.

    python benchmarks/lm_generate.py                 # 1 and 16 streams, one JSON line each
    python benchmarks/lm_generate.py --rounds 9 --cores 1

`ontogeny.engine.generate.generate` takes text and returns text; the peer takes tokens and returns tokens. Both decode
greedily, so that their tokens can be compared (`same_tokens`). Rounds of both alternate, after one round that compiles;
values are medians. On a busy machine the threads of torch wait for each other: `--cores 1` gives each side one thread,
and `cpu_ratio` compares processor seconds. The peer needs torch and transformers (`make parity` builds an environment
that has both); without them it is left out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import kernels
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm import hugging_face
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import ByteTokenizer
from ontogeny.stats import mean_interval

PROMPT_TOKENS, MAX_TOKENS = 32, 128
SHAPE = {"num_layers": 6, "num_heads": 6, "width": 384}
VOCAB_SIZE, CONTEXT_LENGTH = 8192, 256


class ManyTokens(ByteTokenizer):
    """Bytes, and further tokens without text, so that all tokens of the vocabulary may be drawn, as by the peer."""

    size = VOCAB_SIZE
    end_tokens = frozenset[int]()


Generator = Callable[[np.ndarray], list[list[int]]]  # prompts [B, T] -> the generated tokens of each


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    # Before either library starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    configure_jax(None)  # as `ontogeny lm generate` does
    config = transformer.make_config("gpt2", VOCAB_SIZE, CONTEXT_LENGTH, **SHAPE)
    weights = jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), config)
    model = LanguageModel(config, weights, ManyTokens())
    peer = transformers_generator(model)
    letters = np.random.default_rng(0).integers(97, 123, (max(arguments.streams), PROMPT_TOKENS))
    for num_streams in arguments.streams:
        measure(model, peer, letters[:num_streams], arguments.rounds, arguments.cores)


def measure(model: LanguageModel, peer: Generator | None, prompts: np.ndarray, rounds: int, cores: int) -> None:
    """Measures one number of streams and prints its record."""
    greedy = SamplingParams(temperature=0.0)

    def generate_text(prompts: np.ndarray) -> list[list[int]]:
        texts = [bytes(prompt.tolist()).decode() for prompt in prompts]
        completions = generate.generate(model, texts, max_tokens=MAX_TOKENS, sampling_params=greedy)
        return [list(completion.tokens) for completion in completions]

    generators = {"ontogeny": generate_text} | ({} if peer is None else {"peer": peer})
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in generators}
    tokens = {}
    for number in range(rounds + 1):
        for name, generator in generators.items():
            started_at, cpu_started_at = time.perf_counter(), time.process_time()
            tokens[name] = generator(prompts)
            if number:  # the first round compiles
                seconds[name].append(time.perf_counter() - started_at)
                cpu_seconds[name].append(time.process_time() - cpu_started_at)
    assert all(len(sequence) == MAX_TOKENS for sequences in tokens.values() for sequence in sequences)
    count = MAX_TOKENS * len(prompts)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    median_cpu = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    speeds = [count / value for value in seconds["ontogeny"]]
    record: dict[str, Any] = {"name": f"lm_generate: {len(prompts)} stream{'s' * (len(prompts) > 1)}"}
    record |= {"value": round(count / median["ontogeny"], 1), "unit": "tokens/s"}
    record |= {"se": round(mean_interval(speeds).standard_error, 1) if rounds > 1 else None}
    if peer is None:
        record |= {"peer": "absent: torch and transformers are not installed", "peer_value": None, "ratio": None}
    else:
        ratios = [b / a for a, b in zip(seconds["ontogeny"], seconds["peer"], strict=True)]
        equal = np.mean(np.array(tokens["ontogeny"]) == np.array(tokens["peer"]))
        record |= {"peer": "transformers GPT-2 generate()", "peer_value": round(count / median["peer"], 1)}
        record |= {"ratio": round(statistics.median(ratios), 3), "same_tokens": round(float(equal), 4)}
        record |= {"cpu_ratio": round(median_cpu["peer"] / median_cpu["ontogeny"], 3)}
    setting = {"vocab_size": VOCAB_SIZE, "prompt_tokens": PROMPT_TOKENS, "max_tokens": MAX_TOKENS, "rounds": rounds}
    record |= {"path": kernels.describe_path()}
    record |= {"cpu_seconds": round(median_cpu["ontogeny"], 3), "seconds": round(median["ontogeny"], 3)}
    print(json.dumps(record | {"setting": SHAPE | setting | {"cores": cores}}), flush=True)


def transformers_generator(model: LanguageModel) -> Generator | None:
    """Builds the peer; returns None where torch or transformers is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        hugging_face.write_folder(Path(folder) / "model", model.config, model.weights, ByteTokenizer())
        peer = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "model").eval()

    def generate_tokens(prompts: np.ndarray) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            sequences = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=MAX_TOKENS,
                min_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return sequences[:, ids.shape[1] :].tolist()

    return generate_tokens


if __name__ == "__main__":
    main()
