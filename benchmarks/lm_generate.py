"""Tokens per second of text generation, beside transformers, CTranslate2 and llama.cpp with the same weights.

    python benchmarks/lm_generate.py                 # 1, 16 and 64 streams, one JSON line per peer
    python benchmarks/lm_generate.py --rounds 9 --cores 1
    python benchmarks/lm_generate.py --weights float32 bfloat16 int8 --ctranslate2 PYTHON --llama-cpp PYTHON

`ontogeny.engine.generate.generate` takes text and returns text; the peers take tokens and return tokens. All decode
greedily, so that their tokens can be compared (`same_tokens`); the random weights are numbers that bfloat16 has, so
that float32 and bfloat16 are the same model. Peers compute in float32. Rounds of all alternate, after one that compiles
or loads; values are medians. On a busy machine the threads of the peers wait for each other: `--cores 1` gives each
side one thread, and `cpu_ratio` compares processor seconds. transformers needs torch (`make parity` builds an
environment that has both); the others run in processes of their own, with the Python of the environments that `make
peers` builds. A peer that is absent is left out.

The last lines are the bandwidth of memory (a dot product of 256 MiB) and the rate of a large float32 product by NumPy,
the best of several times before and between the measurements, with the share of each that decode reaches: weights that
are read, and operations of their products, per second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from ontogeny import kernels
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.engine import generate
from ontogeny.engine.sampling import SamplingParams
from ontogeny.kernels.packing import pack
from ontogeny.lm import hugging_face
from ontogeny.lm import model as models
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.tokenizer import ByteTokenizer
from ontogeny.stats import mean_interval

PROMPT_TOKENS, MAX_TOKENS = 32, 128
SHAPE = {"num_layers": 6, "num_heads": 6, "width": 384}
VOCAB_SIZE, CONTEXT_LENGTH = 8192, 256
PAUSE = 0.3  # seconds after a turn, in which the threads of its library stop to wait for work
BANDWIDTH_NUMBERS, PRODUCT_SIZE = 1 << 26, 2048
TRANSFORMERS = "transformers GPT-2 generate()"


class ManyTokens(ByteTokenizer):
    """Bytes, and further tokens without text, so that all tokens of the vocabulary may be drawn, as by the peers."""

    size = VOCAB_SIZE
    end_tokens = frozenset[int]()


class Turn(NamedTuple):
    """What one side has generated: tokens [B, T] and the times that it took."""

    tokens: list[list[int]]
    seconds: float
    cpu_seconds: float


Generator = Callable[[np.ndarray], Turn]  # prompts [B, T] -> the generated tokens of each


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--weights", nargs="+", default=["float32"], help="types in which ours keeps its weights")
    parser.add_argument("--ctranslate2", type=Path, help="Python of an environment with CTranslate2")
    parser.add_argument("--llama-cpp", type=Path, help="Python of an environment with llama-cpp-python")
    arguments = parser.parse_args()
    # Before any library starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    configure_jax(None)  # as `ontogeny lm generate` does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(folder)
        loaded = {name: load_ours(folder, name) for name in arguments.weights}
        peers = start_peers(folder, arguments.cores, arguments.ctranslate2, arguments.llama_cpp)
        speeds, limits = {}, measure_limits()
        letters = np.random.default_rng(0).integers(97, 123, (max(arguments.streams), PROMPT_TOKENS))
        for num_streams in arguments.streams:
            sides = {name: partial(generate_ours, model) for name, model in loaded.items()} | peers
            turns = alternate(sides, letters[:num_streams], arguments.rounds)
            for name in loaded:
                speeds[name, num_streams] = report(name, list(peers), turns, num_streams, arguments)
            limits = {name: max(value, limits[name]) for name, value in measure_limits().items()}
    report_shares(loaded, speeds, limits, arguments.cores)


def write_model(folder: Path) -> None:
    """Writes a folder of random weights, which are numbers that bfloat16 has."""
    config = transformer.make_config("gpt2", VOCAB_SIZE, CONTEXT_LENGTH, **SHAPE)
    weights = jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), config)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), weights)
    hugging_face.write_folder(folder, config, weights, ByteTokenizer())


def load_ours(folder: Path, weights: str) -> LanguageModel:
    """Loads the model with its weights in this type."""
    return models.load(folder, weights=weights)._replace(tokenizer=ManyTokens())


def generate_ours(model: LanguageModel, prompts: np.ndarray) -> Turn:
    """Generates text as `ontogeny lm generate` does."""
    texts = [bytes(prompt.tolist()).decode() for prompt in prompts]
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    greedy = SamplingParams(temperature=0.0)
    completions = generate.generate(model, texts, max_tokens=MAX_TOKENS, sampling_params=greedy)
    times = time.perf_counter() - started_at, time.process_time() - cpu_started_at
    return Turn([list(completion.tokens) for completion in completions], *times)


def alternate(sides: dict[str, Generator], prompts: np.ndarray, rounds: int) -> dict[str, list[Turn]]:
    """Lets all sides generate in turn; the first round is left out of the times."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, generator in sides.items():
            turn = generator(prompts)
            assert all(len(sequence) == MAX_TOKENS for sequence in turn.tokens)
            if number:
                turns[name].append(turn)
            time.sleep(PAUSE)
    return turns


def report(
    weights: str, peers: list[str], turns: dict[str, list[Turn]], num_streams: int, arguments: argparse.Namespace
) -> float:
    """Prints a record for each peer, and returns our tokens per second."""
    count = MAX_TOKENS * num_streams
    baseline = turns[weights]
    speeds = [count / turn.seconds for turn in baseline]
    seconds, cpu_seconds = (statistics.median(times) for times in zip(*(turn[1:] for turn in baseline), strict=True))
    name = f"lm_generate: {num_streams} stream{'s' * (num_streams > 1)}"
    record: dict[str, Any] = {"name": name if weights == "float32" else f"{name}, weights in {weights}"}
    record |= {"value": round(count / seconds, 1), "unit": "tokens/s"}
    record |= {"se": round(mean_interval(speeds).standard_error, 1) if len(baseline) > 1 else None}
    setting = SHAPE | {"vocab_size": VOCAB_SIZE, "prompt_tokens": PROMPT_TOKENS, "max_tokens": MAX_TOKENS}
    setting |= {"rounds": arguments.rounds, "cores": arguments.cores, "weights": weights}
    details = {"path": kernels.describe_path(), "cpu_seconds": round(cpu_seconds, 3), "seconds": round(seconds, 3)}
    for peer in peers:
        ratios = [b.seconds / a.seconds for a, b in zip(baseline, turns[peer], strict=True)]
        cpu_ratios = [b.cpu_seconds / a.cpu_seconds for a, b in zip(baseline, turns[peer], strict=True)]
        equal = np.mean(np.array(baseline[-1].tokens) == np.array(turns[peer][-1].tokens))
        peer_seconds = statistics.median(turn.seconds for turn in turns[peer])
        compared = {"peer": peer, "peer_value": round(count / peer_seconds, 1)}
        compared |= {"ratio": round(statistics.median(ratios), 3), "same_tokens": round(float(equal), 4)}
        compared |= {"cpu_ratio": round(statistics.median(cpu_ratios), 3)}
        print(json.dumps(record | compared | details | {"setting": setting}), flush=True)
    if not peers:
        absent = {"peer": "absent: no library to compare with is installed", "peer_value": None, "ratio": None}
        print(json.dumps(record | absent | details | {"setting": setting}), flush=True)
    return count / seconds


def measure_limits() -> dict[str, float]:
    """The bytes of memory that are read, and the operations of a large product, per second."""
    vector = np.ones(BANDWIDTH_NUMBERS, np.float32)
    bandwidth = vector.nbytes / min(time_of(lambda: vector @ vector) for _ in range(7))
    matrix = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    rate = 2 * PRODUCT_SIZE**3 / min(time_of(lambda: matrix @ matrix) for _ in range(7))
    return {"memory bandwidth": bandwidth, "float32 products": rate}


def report_shares(
    loaded: dict[str, LanguageModel],
    speeds: dict[tuple[str, int], float],
    limits: dict[str, float],
    cores: int,
) -> None:
    """Prints the limits of the machine and the shares of them that each measurement reached."""
    for name, unit in (("memory bandwidth", "GB/s"), ("float32 products", "GFLOP/s")):
        record = {"name": f"lm_generate: {name}", "value": round(limits[name] / 1e9, 1), "unit": unit, "se": None}
        record |= {"peer": None, "peer_value": None, "ratio": None, "setting": {"cores": cores}}
        print(json.dumps(record), flush=True)
    for (weights, num_streams), speed in speeds.items():
        packed = pack(loaded[weights].config, loaded[weights].weights)
        num_weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(loaded[weights].weights))
        shares = {
            "memory bandwidth": packed.num_bytes * speed / num_streams / limits["memory bandwidth"],
            "float32 products": 2 * num_weights * speed / limits["float32 products"],
        }
        for name, share in shares.items():
            record = {"name": f"lm_generate: share of {name}, {num_streams} stream{'s' * (num_streams > 1)}, {weights}"}
            record |= {"value": round(share, 3), "unit": "of the measured limit", "se": None, "peer": None}
            record |= {"peer_value": None, "ratio": None, "setting": {"cores": cores}}
            print(json.dumps(record), flush=True)


def time_of(function: Callable[[], object]) -> float:
    """The seconds of one call."""
    started_at = time.perf_counter()
    function()
    return time.perf_counter() - started_at


def start_peers(folder: Path, cores: int, ctranslate2: Path | None, llama_cpp: Path | None) -> dict[str, Generator]:
    """The peers that are there, by name."""
    peers: dict[str, Generator] = {}
    if (generator := transformers_generator(folder)) is not None:
        peers[TRANSFORMERS] = generator
    for name, python in (("ctranslate2", ctranslate2), ("llama-cpp", llama_cpp)):
        if python is not None:
            full_name, generator = process_generator(name, python, folder, cores)
            peers[full_name] = generator
    return peers


def process_generator(name: str, python: Path, folder: Path, cores: int) -> tuple[str, Generator]:
    """Starts `lm_peers.py`, which ends when this process does; returns the name of the library."""
    command = [str(python), str(Path(__file__).parent / "lm_peers.py"), name, str(folder), "--threads", str(cores)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def read_answer() -> dict[str, Any]:
        if not (line := answers.readline()):
            sys.exit(f"the process of {name} has ended")
        return json.loads(line)

    def generate_tokens(prompts: np.ndarray) -> Turn:
        requests.write(json.dumps({"prompts": prompts.tolist(), "max_tokens": MAX_TOKENS}) + "\n")
        requests.flush()
        return Turn(**read_answer())

    return read_answer()["peer"], generate_tokens


def transformers_generator(folder: Path) -> Generator | None:
    """Builds the peer; returns None where torch or transformers is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    peer = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def generate_tokens(prompts: np.ndarray) -> Turn:
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
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
        times = time.perf_counter() - started_at, time.process_time() - cpu_started_at
        return Turn(sequences[:, ids.shape[1] :].tolist(), *times)

    return generate_tokens


if __name__ == "__main__":
    main()
