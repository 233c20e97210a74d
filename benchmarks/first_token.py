"""Seconds from a question to its first token, in the engine alone: one stream, sixteen at once, sixteen on.

    python benchmarks/first_token.py

The model is that of `benchmarks/serve.py`: 6 layers, 384 wide, vocabulary 8192; 32 tokens of prompt, 64 of answer, or,
`varied`, 32 to 96. `burst`: sixteen questions come together to an idle engine. `on`: each stream then asks again as
soon as it is answered; with answers of one length, streams that began together come again together. To compare two
versions, put each one's `src` on PYTHONPATH, and take turns. Prints JSON lines.
"""

import json
import os
import random
import threading
import time

import jax

from ontogeny.content.transformer import init_weights, make_config
from ontogeny.engine.engine import Engine, FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams

PROMPT, NEW, ROUNDS = 32, 64, 3


class Stream:
    """Asks, is answered, asks again; `waits` are seconds to each first token."""

    def __init__(self, engine, weights, number, varied):
        self.engine, self.weights, self.draw, self.varied = engine, weights, random.Random(number), varied
        self.waits, self.done = [], threading.Event()

    def ask(self):
        prompt = tuple(self.draw.randrange(256) for _ in range(PROMPT))
        self.began, self.first = time.perf_counter(), True
        new = self.draw.randint(NEW // 2, NEW + NEW // 2) if self.varied else NEW
        self.engine.submit(
            GenerationRequest(self.weights, prompt, new, SamplingParams(1.0, seed=self.draw.getrandbits(30)), None),
            self,
        )

    def __call__(self, what):
        if isinstance(what, TokenOutput) and self.first:
            self.waits.append(time.perf_counter() - self.began)
            self.first = False
        elif isinstance(what, FinishOutput):
            if len(self.waits) < ROUNDS:
                self.ask()
            else:
                self.done.set()


def measure(engine, weights, streams, varied=False):
    """The streams, after all have been answered, and the seconds of a token."""
    found = [Stream(engine, weights, number, varied) for number in range(streams)]
    began, before = time.perf_counter(), engine.num_generated_tokens
    for stream in found:
        stream.ask()
    for stream in found:
        stream.done.wait()
    return found, (time.perf_counter() - began) / (engine.num_generated_tokens - before)


def tell(name, waits, per_token, streams):
    waits = sorted(waits)
    record = {"name": f"first_token.{name}", "unit": "s", "streams": streams, "requests": len(waits)}
    record |= {"p50": round(waits[len(waits) // 2], 4), "p99": round(waits[int(0.99 * len(waits))], 4)}
    print(json.dumps(record | {"per_token": round(per_token, 5), "load": os.getloadavg()[0]}), flush=True)


def main():
    config = make_config("gpt2", 8192, 256, num_layers=6, num_heads=6, width=384)
    weights = jax.jit(init_weights, static_argnums=1)(jax.random.key(0), config)
    engine = Engine(config)
    engine.start(weights)
    measure(engine, weights, 1)
    found, per_token = measure(engine, weights, 1)
    tell("alone", found[0].waits, per_token, 1)
    for varied in (False, True):
        found, per_token = measure(engine, weights, 16, varied)
        kind = ".varied" if varied else ""
        tell(f"burst{kind}", [stream.waits[0] for stream in found], per_token, 16)
        tell(f"on{kind}", [wait for stream in found for wait in stream.waits[1:]], per_token, 16)
    engine.stop()


if __name__ == "__main__":
    main()
