"""How fast a language model continues text, beside transformers' `generate()` on the same weights.

    python benchmarks/lm_generate.py                 # 1 and 16 streams, one JSON line each
    python benchmarks/lm_generate.py --rounds 9 --cores 1

Ours is `ontogeny.engine.generate.generate`, text in and text out, pieces of it told on the way; the peer is given
tokens and gives tokens. Both take the most probable token, so that they can be seen to give the same ones. Rounds of
ours and the peer's alternate, after one that compiles; medians. On a machine that others use too, torch's threads wait
for each other: `--cores 1` gives either one thread, and `cpu_ratio` compares processor seconds. Without torch and
transformers (`make parity` makes an environment with them) the peer is absent.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.sampling import SamplingParams
from ontogeny.lm import hugging_face
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import ByteTokenizer

STREAMS = (1, 16)
PROMPT, NEW = 32, 128
SHAPE = {"num_layers": 6, "num_heads": 6, "width": 384}
VOCABULARY, CONTEXT = 8192, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # before either makes its threads
    configure_jax(None)  # as `ontogeny generate` does
    config = transformer.make_config("gpt2", VOCABULARY, CONTEXT, **SHAPE)
    weights = jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), config)
    model = LanguageModel(config, weights, ByteTokenizer())
    peer = transformers_model(model)
    letters = np.random.default_rng(0).integers(97, 123, (max(STREAMS), PROMPT))
    for streams in STREAMS:
        measure(model, peer, letters[:streams], given.rounds, given.cores)


def measure(model: LanguageModel, peer: Callable | None, prompts: np.ndarray, rounds: int, cores: int) -> None:
    texts = [bytes(row.tolist()).decode() for row in prompts]
    greedy = SamplingParams(temperature=0)

    def ours() -> list[list[int]]:
        return [list(each.tokens) for each in generate.generate(model, texts, max_tokens=NEW, sampling_params=greedy)]

    def theirs() -> list[list[int]]:
        assert peer is not None
        return peer(prompts)

    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    work: dict[str, list[float]] = {"ours": [], "peer": []}
    made = {}
    for number in range(rounds + 1):
        for name, call in (("ours", ours), ("peer", theirs)) if peer else (("ours", ours),):
            began, worked = time.perf_counter(), time.process_time()
            made[name] = call()
            if number:
                seconds[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - worked)
    assert all(len(row) == NEW for rows in made.values() for row in rows), "a stream ended early"
    count = NEW * len(prompts)
    mean = statistics.median(seconds["ours"])
    speeds = [count / each for each in seconds["ours"]]
    line = {"name": f"lm_generate: {len(prompts)} stream{'s' * (len(prompts) > 1)}", "value": round(count / mean, 1)}
    line |= {"unit": "tokens/s", "se": round(float(np.std(speeds) / len(speeds) ** 0.5), 1)}
    if peer:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
        same = np.mean(np.array(made["ours"]) == np.array(made["peer"]))
        line |= {"peer": "transformers GPT-2 generate()"}
        line |= {"peer_value": round(count / statistics.median(seconds["peer"]), 1)}
        line |= {"ratio": round(statistics.median(ratios), 3), "same_tokens": round(float(same), 4)}
        line |= {"cpu_ratio": round(statistics.median(work["peer"]) / statistics.median(work["ours"]), 3)}
    else:
        line |= {"peer": "absent: torch and transformers are not installed", "peer_value": None, "ratio": None}
    setting = SHAPE | {"vocabulary": VOCABULARY, "prompt": PROMPT, "new": NEW, "rounds": rounds, "cores": cores}
    line |= {"cpu_seconds": round(statistics.median(work["ours"]), 3)}
    print(json.dumps(line | {"seconds": round(mean, 3), "setting": setting}), flush=True)


def transformers_model(model: LanguageModel) -> Callable[[np.ndarray], list[list[int]]] | None:
    """Prompts [R, T] -> what transformers draws after each; None where it or torch is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        hugging_face.write_folder(Path(folder) / "model", *model[:3])
        peer = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "model").eval()

    def continued(prompts: np.ndarray) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            whole = peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return whole[:, ids.shape[1] :].tolist()

    return continued


if __name__ == "__main__":
    main()
