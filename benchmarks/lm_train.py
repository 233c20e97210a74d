"""How fast and how well a small language model is trained, beside PyTorch: one JSON line a figure.

    python benchmarks/lm_train.py --text shakespeare.txt                # 2,000 iterations each
    python benchmarks/lm_train.py --text shakespeare.txt --steps 60 --cores 1      # speed alone, soon
    python benchmarks/lm_train.py --text shakespeare.txt --minutes 10   # the best loss in ten minutes

nanoGPT's configuration for a CPU: characters, 4 layers, 4 heads, 128 wide, blocks of 64, 12 of them in a step, no
biases, AdamW at 1e-3 down to 1e-4. `same` is that model and recipe here; `better` is the recipe `BETTER` with no more
weights; the peer is the same model in PyTorch, absent where torch is not installed. All take turns of a few steps, so
that a busy machine is busy for all, and each has a clock of its own, which begins after the first turn. The validation
loss is over the last tenth of the text, every block of it; no clock runs meanwhile.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import trees
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig
from ontogeny.lm import corpus, optimization
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.optimization import OptimizerConfig

BLOCK, BATCH, TURN = 64, 12, 10
SHAPE = {"num_layers": 4, "num_heads": 4, "width": 128}
TARGET = 1.886  # nats per character, PyTorch's after 2,000 iterations on a quiet machine
SAME = OptimizerConfig(steps=2000, batch=BATCH, learning_rate=1e-3, warmup=0.05, weight_decay=0.1)
BETTER = OptimizerConfig(steps=450, batch=BATCH, optimizer="muon", learning_rate=8e-3, floor=0.0, warmup=0.02, decay="linear")


class Runner:
    """Somebody who trains in turns, in a process of its own: each has the settings of JAX that it is used with."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=take_turns, args=(name, given, theirs), daemon=True)
        self.process.start()
        self.there, self.weights, self.how = self.pipe.recv()
        self.steps, self.seconds, self.work, self.timed = 0, 0.0, 0.0, 0

    def ask(self, word: str) -> Any:
        self.pipe.send(word)
        return self.pipe.recv()

    def go_on(self) -> bool:
        taken, seconds, work = self.ask("turn")
        if self.steps:  # the first turn compiles
            self.seconds, self.work, self.timed = self.seconds + seconds, self.work + work, self.timed + taken
        self.steps += taken
        return taken > 0


def take_turns(name: str, given: argparse.Namespace, pipe: Any) -> None:
    """The process of one of them: a turn, or the loss on the held-out text, at each word."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    configure_jax(None, one_thread=name == "same")  # as `ontogeny train text` does for AdamW and for Muon
    learner, held_out = who(name, given)
    if learner is None:
        pipe.send((False, 0, {}))
        return
    turns = learner.turns()
    pipe.send((True, learner.size(), learner.how._asdict()))
    while True:
        word = pipe.recv()
        if word == "loss":
            pipe.send(learner.loss(held_out))
            return
        began, worked = time.perf_counter(), time.process_time()
        taken = next(turns, 0)
        pipe.send((taken, time.perf_counter() - began, time.process_time() - worked))


def who(name: str, given: argparse.Namespace) -> tuple[Any, np.ndarray]:
    """A learner by its name, and the held-out windows."""
    text = given.text.read_text(encoding="utf-8")
    characters = tokenizers.Characters("".join(sorted(set(text))))
    tokens = characters.encode(text)
    cut = round(0.9 * len(tokens))
    V = characters.size
    held_out = corpus.spaced_windows(tokens[cut:], BLOCK, len(tokens))
    if name == "peer":
        return peer(V, given.steps, tokens[:cut]), held_out
    if name == "same":
        config = transformer.make_config("gpt2", V, BLOCK, **SHAPE)._replace(use_biases=False)
        return Ours(config, SAME._replace(steps=given.steps), tokens[:cut]), held_out
    better = BETTER._replace(steps=given.better, learning_rate=given.learning_rate)
    return Ours(transformer.make_config("modern", V, BLOCK, **SHAPE), better, tokens[:cut]), held_out


class Ours:
    def __init__(self, config: TransformerConfig, how: OptimizerConfig, tokens: np.ndarray) -> None:
        self.config, self.how, self.tokens = config, how, tokens
        self.shards = optimization.count_shards(how)
        self.weights = optimization.put_on_shards(optimization.init_training(jax.random.key(0), config, how), self.shards)

    def size(self) -> int:
        return trees.num_elements(self.weights.content)

    def turns(self) -> Iterator[int]:
        for done in range(0, self.how.steps, TURN):
            count = min(TURN, self.how.steps - done)
            windows = corpus.sample_batches(self.tokens, 0, done, (count, 1, self.how.batch), BLOCK)
            self.weights, info = self.stepped(windows)
            jax.block_until_ready(info)
            yield count

    def stepped(self, windows: np.ndarray) -> Any:
        return optimization.take_steps(self.config, self.how, self.weights, windows, shards=self.shards)

    def loss(self, windows: np.ndarray) -> float:
        parts = np.array_split(windows, max(len(windows) // 64, 1))
        found = [optimization.window_losses(self.config, "float32", self.weights.content, part) for part in parts]
        return float(np.concatenate([np.asarray(each).ravel() for each in found]).mean())


def peer(vocabulary: int, steps: int, tokens: np.ndarray) -> Any:
    """The same model and recipe in PyTorch, or None."""
    try:
        import torch
    except ImportError:
        return None
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    W, H = SHAPE["width"], SHAPE["num_heads"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(W, bias=False), nn.LayerNorm(W, bias=False)
            self.attend, self.project = nn.Linear(W, 3 * W, bias=False), nn.Linear(W, W, bias=False)
            self.up, self.down = nn.Linear(W, 4 * W, bias=False), nn.Linear(4 * W, W, bias=False)

        def forward(self, x: Any) -> Any:
            B, T, _ = x.shape
            q, k, v = (part.view(B, T, H, W // H).transpose(1, 2) for part in self.attend(self.norm_1(x)).split(W, 2))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.project(mixed.transpose(1, 2).reshape(B, T, W))
            return x + self.down(functional.gelu(self.up(self.norm_2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.positions = nn.Embedding(vocabulary, W), nn.Embedding(BLOCK, W)
            self.blocks, self.norm = (
                nn.Sequential(*(Block() for _ in range(SHAPE["num_layers"]))),
                nn.LayerNorm(W, bias=False),
            )
            for name, weight in self.named_parameters():
                back = name.endswith(("project.weight", "down.weight"))
                if weight.ndim == 2:
                    nn.init.normal_(weight, 0, 0.02 / ((2 * SHAPE["num_layers"]) ** 0.5 if back else 1))

        def forward(self, windows: Any) -> Any:
            x = self.blocks(self.embedding(windows[:, :-1]) + self.positions.weight)
            logits = functional.linear(self.norm(x), self.embedding.weight)
            return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    class Peer:
        def __init__(self) -> None:
            self.model = Model()
            matrices = [w for w in self.model.parameters() if w.ndim == 2]
            others = [w for w in self.model.parameters() if w.ndim < 2]
            groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
            self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
            self.how = SAME._replace(steps=steps)
            self.rate = optimization.make_schedule(self.how)

        def size(self) -> int:
            return sum(weight.numel() for weight in self.model.parameters())

        def turns(self) -> Iterator[int]:
            rates = np.asarray(jax.vmap(self.rate)(np.arange(steps)))
            for done in range(0, steps, TURN):
                count = min(TURN, steps - done)
                windows = torch.from_numpy(corpus.sample_batches(tokens, 0, done, (count, 1, BATCH), BLOCK)[:, 0]).long()
                for i in range(count):
                    for group in self.adam.param_groups:
                        group["lr"] = float(rates[done + i])
                    loss = self.model(windows[i])
                    self.adam.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.adam.step()
                yield count

        def loss(self, windows: np.ndarray) -> float:
            with torch.inference_mode():
                found = [float(self.model(part)) * len(part) for part in torch.from_numpy(windows).long().split(64)]
            return sum(found) / len(windows)

    return Peer()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SAME.steps, help="of `same` and of the peer")
    parser.add_argument("--better", type=int, default=BETTER.steps, help="steps of `better`")
    parser.add_argument("--learning-rate", type=float, default=BETTER.learning_rate, help="of `better`")
    parser.add_argument("--only-better", action="store_true")
    parser.add_argument("--minutes", type=float, help="the best loss in so many, and nothing else")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if min(given.steps, given.better) <= TURN:
        parser.error(f"more than {TURN} steps are needed: the first turn compiles and is not timed")
    if given.minutes:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
        configure_jax(None)
        better, held_out = who("better", given)
        best_in(given.minutes, better.config, better.how, better.tokens, held_out, given.cores)
        return
    names = ("better",) if given.only_better else ("better", "same", "peer")
    runners = {name: runner for name in names if (runner := Runner(name, given)).there}
    waiting = list(runners)
    while waiting:
        waiting = [name for name in waiting if runners[name].go_on()]
    report(runners, given.cores)


def report(runners: dict[str, Runner], cores: int) -> None:
    per_step = BATCH * BLOCK
    losses = {name: runner.ask("loss") for name, runner in runners.items()}
    beside = runners.get("peer")
    absent = {"peer": "absent", "peer_value": None, "ratio": None}
    torch = {"peer": "PyTorch, the same model"} if beside else absent
    for name in (name for name in ("same", "better") if name in runners):
        run, setting = runners[name], runners[name].how | {"block": BLOCK, "cores": cores}
        setting |= SHAPE | {"weights": run.weights}
        speed, seconds = run.timed * per_step / run.seconds, run.seconds * run.steps / run.timed
        more: dict[str, Any] = {}
        if beside:
            theirs = beside.timed * per_step / beside.seconds
            cpu = (run.timed / run.work) / (beside.timed / beside.work)
            more = {"peer_value": round(theirs, 1), "ratio": round(speed / theirs, 3), "cpu_ratio": round(cpu, 3)}
        line(f"{name}, speed", round(speed, 1), "tokens/s", torch | more, seconds, setting)
        more = (
            {"peer_value": round(losses["peer"], 4), "ratio": round(losses[name] / losses["peer"], 4)} if beside else {}
        )
        line(f"{name}, loss", round(losses[name], 4), "nats per character", torch | more, seconds, setting)
        if name == "better":
            if beside:
                theirs = beside.seconds * SAME.steps / beside.timed  # for its whole training, however much was done
                more = {"peer_value": round(theirs, 1), "ratio": round(seconds / theirs, 3)}
                more["cpu_ratio"] = round(
                    run.work * run.steps / run.timed / (beside.work * SAME.steps / beside.timed), 3
                )
            line(
                f"better, time to {round(losses[name], 3)} (target {TARGET}: {losses[name] <= TARGET})",
                round(seconds, 1),
                "s",
                torch | more,
                seconds,
                setting,
            )


def best_in(minutes: float, config: TransformerConfig, how: OptimizerConfig, tokens: np.ndarray, held_out: np.ndarray, cores: int) -> None:
    """As many steps as the time allows at the speed of the first ones, after which the schedule is made."""
    trial = Runner(Ours(config, how, tokens).turns())
    while trial.steps < 10 * TURN and trial.go_on():
        pass
    steps = int(0.95 * 60 * minutes * trial.timed / trial.seconds)
    ours = Ours(config, how._replace(steps=steps), tokens)
    run = Runner(ours.turns())
    while run.seconds < 60 * minutes and run.go_on():
        pass
    setting = ours.how._asdict() | SHAPE | {"taken": run.steps, "cores": cores}
    name = f"the best in {minutes:g} minutes"
    line(name, round(ours.loss(held_out), 4), "nats per character", {}, run.seconds, setting)


def line(name: str, value: float, unit: str, beside: dict[str, Any], seconds: float, setting: dict[str, Any]) -> None:
    found = {"name": f"lm_train: {name}", "value": value, "unit": unit, "se": None} | beside
    print(json.dumps(found | {"seconds": round(seconds, 1), "setting": setting}), flush=True)


if __name__ == "__main__":
    main()
