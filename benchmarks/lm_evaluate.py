"""Seconds and peak memory of `ontogeny lm evaluate` for a large vocabulary, beside transformers, as JSON lines.

    python benchmarks/lm_evaluate.py                                        # without a peer
    python benchmarks/lm_evaluate.py --peer-python PATH/bin/python          # an environment with torch and transformers
    python benchmarks/lm_evaluate.py --batch-size 4 --bytes 5000

The model has the shape of GPT-2 small (12 layers, width 768, vocabulary 50,257, context 1,024) and random weights; its
tokenizer has bytes, so that a text of 20 kB has 20,000 tokens. Both programs score windows of the context that advance
by half of it, in float32 on the CPU, each in a process of its own whose start, loading and compilation count. The peer
computes one window at a time with `GPT2LMHeadModel`, as the guide of transformers to perplexity does. Memory is the
highest resident size of the process. The results of both are compared to 1e-3 bits per byte.
"""

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from ontogeny.content.transformer import init_weights, make_config
from ontogeny.lm import hugging_face
from ontogeny.lm.tokenizer import ByteTokenizer

SHAPE = {"num_layers": 12, "num_heads": 12, "width": 768}
VOCAB_SIZE, CONTEXT_LENGTH = 50257, 1024
PEER = """
import json, sys
import torch
from transformers import GPT2LMHeadModel

folder, text = sys.argv[1:]
model = GPT2LMHeadModel.from_pretrained(folder).eval()
context, stride = model.config.n_positions, model.config.n_positions // 2
data = open(text, "rb").read()
tokens = torch.tensor([256, *data])
num_losses = len(tokens) - 1
size = min(context, num_losses)
ends = [min(size + w * stride, num_losses) for w in range(1 + -(-(num_losses - size) // stride))]
nats, done = 0.0, 0
with torch.inference_mode():
    for end in ends:
        window = tokens[end - size : end + 1]
        logits = model(window[None, :-1]).logits[0, size - (end - done) :]
        nats += torch.nn.functional.cross_entropy(logits, window[1:][size - (end - done) :], reduction="sum").item()
        done = end
print(json.dumps({"nats": nats, "num_bytes": len(data)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=20_000, help="length of the text")
    parser.add_argument("--batch-size", type=int, help="windows per batch; by default that of the program")
    parser.add_argument("--peer-python", help="Python of an environment with torch and transformers")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each program, which alternate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, text = Path(folder) / "model", Path(folder) / "text.txt"
        # In a process of its own, since the highest memory of a process counts for the programs that it starts.
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=(model,))
        writer.start()
        writer.join()
        sentence = "Rivers carry the rain of the hills to the sea, and the sea gives it back as clouds. "
        text.write_text((sentence * (arguments.bytes // len(sentence) + 1))[: arguments.bytes])
        program = [sys.executable, "-m", "ontogeny", "lm", "evaluate", str(model), "--text", str(text), "--json"]
        if arguments.batch_size is not None:
            program += ["--batch-size", str(arguments.batch_size)]
        commands = {"ontogeny": program}
        if arguments.peer_python:
            commands["transformers"] = [arguments.peer_python, "-c", PEER, str(model), str(text)]
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                measured[name].append(measure(command))
    report(measured, vars(arguments))


def write_model(folder: Path) -> None:
    """Write a model with random weights."""
    config = make_config("gpt2", VOCAB_SIZE, CONTEXT_LENGTH, **SHAPE)
    hugging_face.write_folder(folder, config, init_weights(jax.random.key(0), config), ByteTokenizer())


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a program.

    Returns:
        Its seconds, the MiB of its highest resident memory, and the bits per byte that it prints.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with the exit code {process.returncode}")
    record = json.loads(output)
    bits = record["nats"] / record["num_bytes"] / math.log(2) if "nats" in record else record["bits_per_byte"]["mean"]
    return time.perf_counter() - started, usage.ru_maxrss / 1024, bits


def report(measured: dict[str, list[tuple[float, float, float]]], setting: dict[str, Any]) -> None:
    """Print one line per quantity; of several runs the fastest and the one with the least memory."""
    seconds, memory = ({name: min(run[i] for run in runs) for name, runs in measured.items()} for i in (0, 1))
    bits = {name: runs[0][2] for name, runs in measured.items()}
    if "transformers" in bits and abs(bits["ontogeny"] - bits["transformers"]) > 1e-3:
        raise SystemExit(f"the programs disagree: {bits}")
    settings = {key: setting[key] for key in ("bytes", "batch_size", "repeats")} | {"bits_per_byte": bits}
    for name, unit, quantity in (("lm_evaluate_time", "s", seconds), ("lm_evaluate_memory", "MiB", memory)):
        cost, peer = quantity["ontogeny"], quantity.get("transformers")
        line = {"name": name, "value": round(cost, 2), "unit": unit, "se": None}
        line |= {"peer": None if peer is None else "transformers", "peer_value": peer and round(peer, 2)}
        line |= {"ratio": peer and round(cost / peer, 3), "seconds": seconds["ontogeny"], "setting": settings}
        print(json.dumps(line))


if __name__ == "__main__":
    main()
