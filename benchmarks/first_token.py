"""Processor seconds from a question to its first token, in the engine alone: one stream, sixteen at once, sixteen on.

    python benchmarks/first_token.py

Seconds of the processor, not of the clock, so that a machine that others use gives the same figures; on C idle cores
they pass C times as fast at best. The model is that of `benchmarks/serve.py`: 6 layers, 384 wide, vocabulary 8192;
32 tokens of prompt, 64 of answer. `burst`: sixteen questions come together to an idle engine. `on`: each stream then
asks again as soon as it is answered. To compare two versions, put each one's `src` on PYTHONPATH. Prints JSON lines.
"""

import json
import random
import threading
import time

import jax

from ontogeny.content.transformer import configure, initial
from ontogeny.server.choices import Taste
from ontogeny.server.engine import End, Engine, Question, Token

PROMPT, NEW, ROUNDS = 32, 64, 3


class Stream:
    """Asks, is answered, asks again; `waits` are seconds to each first token."""

    def __init__(self, engine, weights, number):
        self.engine, self.weights, self.draw = engine, weights, random.Random(number)
        self.waits, self.done = [], threading.Event()

    def ask(self):
        prompt = tuple(self.draw.randrange(256) for _ in range(PROMPT))
        self.began, self.first = time.process_time(), True
        self.engine.ask(Question(self.weights, prompt, NEW, Taste(1.0, seed=self.draw.getrandbits(30)), None), self)

    def __call__(self, what):
        if isinstance(what, Token) and self.first:
            self.waits.append(time.process_time() - self.began)
            self.first = False
        elif isinstance(what, End):
            if len(self.waits) < ROUNDS:
                self.ask()
            else:
                self.done.set()


def measure(engine, weights, streams):
    """The streams, after all have been answered, and the processor seconds of a token."""
    found = [Stream(engine, weights, number) for number in range(streams)]
    began, before = time.process_time(), engine.tokens
    for stream in found:
        stream.ask()
    for stream in found:
        stream.done.wait()
    return found, (time.process_time() - began) / (engine.tokens - before)


def tell(name, waits, per_token, streams):
    waits = sorted(waits)
    record = {"name": f"first_token.{name}", "unit": "processor s", "streams": streams, "requests": len(waits)}
    record |= {"p50": round(waits[len(waits) // 2], 4), "p99": round(waits[int(0.99 * len(waits))], 4)}
    print(json.dumps(record | {"per_token": round(per_token, 5)}), flush=True)


def main():
    config = configure("gpt2", 8192, 256, layers=6, heads=6, width=384)
    weights = jax.jit(initial, static_argnums=1)(jax.random.key(0), config)
    engine = Engine(config)
    engine.start(weights)
    measure(engine, weights, 1)
    found, per_token = measure(engine, weights, 1)
    tell("alone", found[0].waits, per_token, 1)
    found, per_token = measure(engine, weights, 16)
    tell("burst", [stream.waits[0] for stream in found], per_token, 16)
    tell("on", [wait for stream in found for wait in stream.waits[1:]], per_token, 16)
    engine.stop()


if __name__ == "__main__":
    main()
