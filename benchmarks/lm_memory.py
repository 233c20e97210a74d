"""Memory of loading a language model, and tokens per second, with the shapes of published checkpoints.

    python benchmarks/lm_memory.py                              # three shapes, in bfloat16 and int8
    python benchmarks/lm_memory.py --shapes qwen3-0.6b --weights auto --streams 1 16

Writes folders of Hugging Face with random weights in bfloat16 into a temporary folder, and measures each case in a
process of its own: the increase of the resident memory from before loading to its peak during loading (`ratio` is that
of the size of the weights in the type in which they are kept), the peak of the process after generation, and the
median of the tokens per second of some rounds of greedy generation after one that warms up.
"""

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

PROMPT_TOKENS = 32
SMALL = "small"  # the folder beside each one, whose loading imports all modules before anything is measured
SMALL_SIZES = {"vocab_size": 512, "intermediate_size": 64, "num_hidden_layers": 1}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
COMMON = {"tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "bfloat16", "eos_token_id": None}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING, "rms_norm_eps": 1e-5,
    },
}  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--weights", nargs="+", default=["auto", "int8"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process of one case
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.weights[0], arguments.streams, arguments.max_tokens, arguments.rounds)
        return
    options = ["--max-tokens", str(arguments.max_tokens), "--rounds", str(arguments.rounds)]
    options += ["--streams", *map(str, arguments.streams)]
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / shape
            write_folder(folder, SHAPES[shape])
            write_folder(folder.parent / SMALL, SHAPES[shape] | SMALL_SIZES)
            for weights in arguments.weights:
                command = [sys.executable, __file__, "--folder", str(folder), "--weights", weights, *options]
                subprocess.run(command, check=True)


def write_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Writes a folder of Hugging Face with random weights in bfloat16, and a tokenizer of bytes."""
    from ontogeny.lm.tokenizer import ByteTokenizer

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(COMMON | settings))
    (folder / "tokenizer.json").write_text(ByteTokenizer().as_json())
    width, mlp_width = settings["hidden_size"], settings["intermediate_size"]
    head_size = settings.get("head_dim") or width // settings["num_attention_heads"]
    query_width, key_width = (settings[f"num_{kind}_heads"] * head_size for kind in ("attention", "key_value"))
    shapes = {"embed_tokens": (settings["vocab_size"], width), "norm": (width,)}
    for layer in range(settings["num_hidden_layers"]):
        parts = {
            "self_attn.q_proj": (query_width, width), "self_attn.k_proj": (key_width, width),
            "self_attn.v_proj": (key_width, width), "self_attn.o_proj": (width, query_width),
            "mlp.gate_proj": (mlp_width, width), "mlp.up_proj": (mlp_width, width), "mlp.down_proj": (width, mlp_width),
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        if settings["model_type"] == "qwen3":
            parts |= {"self_attn.q_norm": (head_size,), "self_attn.k_norm": (head_size,)}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in parts.items()}
    numbers = (0.02 * np.random.default_rng(0).standard_normal(1 << 22)).astype(ml_dtypes.bfloat16)
    ones = np.ones(1 << 14, ml_dtypes.bfloat16)
    arrays = {
        f"model.{name}.weight": np.resize(numbers if len(shape) == 2 else ones, shape) for name, shape in shapes.items()
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def measure(folder: Path, weights: str, streams: list[int], max_tokens: int, rounds: int) -> None:
    """Loads one folder, generates, and prints the records."""
    from ontogeny.cli.jax_setup import configure_jax

    configure_jax(None)
    import jax

    from ontogeny import kernels, memory
    from ontogeny.engine import generate
    from ontogeny.engine.sampling import SamplingParams
    from ontogeny.kernels import packing
    from ontogeny.lm import model as models

    greedy = SamplingParams(temperature=0.0)
    generate.generate(models.load(folder.parent / SMALL, weights=weights), ["a"], max_tokens=2, sampling_params=greedy)
    before = memory.read_memory("VmRSS") or 0
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory is measured from now on
    started_at = time.perf_counter()
    model = models.load(folder, weights=weights)
    seconds = time.perf_counter() - started_at
    peak = memory.read_memory("VmHWM") or 0
    weight_type = packing.weight_type_of(model.weights)
    num_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.weights))
    size = num_parameters * packing.STORAGES[weight_type].dtype.itemsize
    setting = {"weights": weight_type, "parameters": num_parameters, "path": kernels.describe_path()}
    name = f"lm_memory: {folder.name}, {weight_type}"
    record = {"name": f"{name}, memory of loading", "value": round((peak - before) / 1e6), "unit": "MB", "se": None}
    record |= {"peer": "size of the weights", "peer_value": round(size / 1e6)}
    record |= {"ratio": round((peak - before) / size, 3), "seconds": round(seconds, 2)}
    print(json.dumps(record | {"setting": setting | {"process_peak_mb": round(peak / 1e6)}}), flush=True)
    letters = np.random.default_rng(0).integers(97, 123, (max(streams), PROMPT_TOKENS))
    for num_streams in streams:
        texts = [bytes(prompt.tolist()).decode() for prompt in letters[:num_streams]]
        times, count = [], 0
        for _ in range(rounds + 1):
            started_at = time.perf_counter()
            completions = generate.generate(model, texts, max_tokens=max_tokens, sampling_params=greedy)
            times.append(time.perf_counter() - started_at)
            count = sum(len(completion.tokens) for completion in completions)
        speeds = [count / duration for duration in times[1:]]
        record = {"name": f"{name}, generation, {num_streams} stream{'s' * (num_streams > 1)}"}
        record |= {"value": round(statistics.median(speeds), 1), "unit": "tokens/s"}
        spread = statistics.stdev(speeds) / math.sqrt(len(speeds)) if len(speeds) > 1 else None
        record |= {"se": None if spread is None else round(spread, 2), "peer": None, "peer_value": None, "ratio": None}
        record |= {"seconds": round(statistics.median(times[1:]), 3)}
        details = {"prompt_tokens": PROMPT_TOKENS, "max_tokens": max_tokens, "rounds": rounds}
        details |= {"process_peak_mb": round((memory.read_memory("VmHWM") or 0) / 1e6)}
        print(json.dumps(record | {"setting": setting | details}), flush=True)


if __name__ == "__main__":
    main()
