"""Speed and quality of training a small language model, beside PyTorch. One JSON line per result.

    python benchmarks/lm_train.py --text shakespeare.txt                       # 2,000 steps each
    python benchmarks/lm_train.py --text shakespeare.txt --steps 60 --cores 1  # speed alone, quickly
    python benchmarks/lm_train.py --text shakespeare.txt --minutes 10          # the best loss in ten minutes

The task is nanoGPT's configuration for a CPU: characters, 4 layers, 4 heads, width 128, context length 64, batch size
12, no biases, AdamW with a learning rate that falls from 1e-3 to 1e-4. `same` trains that model with that optimizer;
`better` trains a modern architecture with no more weights by the optimizer `BETTER`; the peer is the same model in
PyTorch, left out where torch is not installed. All alternate in turns of a few steps, so that other load of the machine
affects all of them. Each has a clock of its own, which starts after its first turn and does not run during validation.
The validation loss is the mean over all windows of the last tenth of the text.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ontogeny import trees
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig
from ontogeny.lm import corpus, optimization
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.lm.tokenizer import CharacterTokenizer

CONTEXT_LENGTH, BATCH_SIZE, TURN_STEPS = 64, 12, 10
SHAPE = {"num_layers": 4, "num_heads": 4, "width": 128}
TARGET = 1.886  # nats per character: the loss of PyTorch after 2,000 steps
SAME = OptimizerConfig(num_steps=2000, batch_size=BATCH_SIZE)
BETTER = OptimizerConfig(
    num_steps=450,
    batch_size=BATCH_SIZE,
    optimizer="muon",
    learning_rate=8e-3,
    final_learning_rate_ratio=0.0,
    warmup_fraction=0.02,
    decay_schedule="linear",
)


class Runner:
    """A trainer in a process of its own, with the JAX settings of its command."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, remote_pipe = context.Pipe()
        self.process = context.Process(target=take_turns, args=(name, arguments, remote_pipe), daemon=True)
        self.process.start()
        self.is_available, self.num_parameters, self.settings = self.pipe.recv()
        self.num_steps, self.seconds, self.cpu_seconds, self.num_timed = 0, 0.0, 0.0, 0

    def request(self, command: str) -> Any:
        """Send a command to the process and return its answer."""
        self.pipe.send(command)
        return self.pipe.recv()

    def take_turn(self) -> bool:
        """Let the trainer take some steps; False where its training is finished."""
        count, seconds, cpu_seconds = self.request("turn")
        if self.num_steps:  # the first turn compiles
            self.seconds, self.cpu_seconds = self.seconds + seconds, self.cpu_seconds + cpu_seconds
            self.num_timed += count
        self.num_steps += count
        return count > 0


def take_turns(name: str, arguments: argparse.Namespace, pipe: Connection) -> None:
    """The process of a runner: at each command it takes a turn or returns the loss on the held-out text."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    configure_jax(None, one_thread=name == "same")  # as `ontogeny lm train` does for AdamW and for Muon
    trainer, held_out = build_trainer(name, arguments)
    if trainer is None:
        pipe.send((False, 0, {}))
        return
    turns = trainer.turns()
    pipe.send((True, trainer.count_parameters(), trainer.config.model_dump()))
    while pipe.recv() == "turn":
        started, cpu_started = time.perf_counter(), time.process_time()
        count = next(turns, 0)
        pipe.send((count, time.perf_counter() - started, time.process_time() - cpu_started))
    pipe.send(trainer.loss(held_out))


def build_trainer(name: str, arguments: argparse.Namespace) -> tuple[Any, np.ndarray]:
    """A trainer by its name (None where it is not available), and the held-out windows."""
    text = arguments.text.read_text(encoding="utf-8")
    tokenizer = CharacterTokenizer("".join(sorted(set(text))))
    tokens = tokenizer.encode(text)
    cut = round(0.9 * len(tokens))
    V = tokenizer.size
    held_out = corpus.spaced_windows(tokens[cut:], CONTEXT_LENGTH, len(tokens))
    if name == "peer":
        return build_peer(V, arguments.steps, tokens[:cut]), held_out
    if name == "same":
        model_config = transformer.make_config("gpt2", V, CONTEXT_LENGTH, **SHAPE)._replace(use_biases=False)
        return Trainer(model_config, SAME.model_copy(update={"num_steps": arguments.steps}), tokens[:cut]), held_out
    settings = {"num_steps": arguments.better, "learning_rate": arguments.learning_rate}
    model_config = transformer.make_config("modern", V, CONTEXT_LENGTH, **SHAPE)
    return Trainer(model_config, BETTER.model_copy(update=settings), tokens[:cut]), held_out


def sample_windows(tokens: np.ndarray, first: int, count: int) -> np.ndarray:
    """The windows of some steps, [count, batch, context + 1]."""
    return corpus.sample_batches(tokens, 0, first, (count, 1, BATCH_SIZE), CONTEXT_LENGTH)[:, 0]


class Trainer:
    """A training by ontogeny, in turns."""

    def __init__(self, model_config: TransformerConfig, config: OptimizerConfig, tokens: np.ndarray) -> None:
        self.model_config, self.config, self.tokens = model_config, config, tokens
        self.num_shards = optimization.count_shards(config)
        weights = optimization.init_training(jax.random.key(0), model_config, config)
        self.weights = optimization.put_on_shards(weights, self.num_shards)

    def count_parameters(self) -> int:
        """The number of parameters."""
        return trees.num_elements(self.weights.content)

    def turns(self) -> Iterator[int]:
        """Train, and yield the number of steps after each turn."""
        for first in range(0, self.config.num_steps, TURN_STEPS):
            count = min(TURN_STEPS, self.config.num_steps - first)
            windows = sample_windows(self.tokens, first, count)[:, None]
            self.weights, info = optimization.take_steps(
                self.model_config, self.config, self.weights, windows, num_shards=self.num_shards
            )
            jax.block_until_ready(info)
            yield count

    def loss(self, windows: np.ndarray) -> float:
        """The mean loss of windows, nats per token."""
        batches = np.array_split(windows, max(len(windows) // 64, 1))
        content = self.weights.content
        losses = [optimization.window_losses(self.model_config, "float32", content, batch) for batch in batches]
        return float(np.concatenate([np.asarray(batch_losses).ravel() for batch_losses in losses]).mean())


def build_peer(vocab_size: int, num_steps: int, tokens: np.ndarray) -> Any:
    """The same model and optimizer in PyTorch; None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    W, H = SHAPE["width"], SHAPE["num_heads"]

    class PeerLayer(nn.Module):
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

    class PeerModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.positions = nn.Embedding(vocab_size, W), nn.Embedding(CONTEXT_LENGTH, W)
            self.blocks, self.norm = (
                nn.Sequential(*(PeerLayer() for _ in range(SHAPE["num_layers"]))),
                nn.LayerNorm(W, bias=False),
            )
            for name, weight in self.named_parameters():
                is_output = name.endswith(("project.weight", "down.weight"))
                if weight.ndim == 2:
                    nn.init.normal_(weight, 0, 0.02 / ((2 * SHAPE["num_layers"]) ** 0.5 if is_output else 1))

        def forward(self, windows: Any) -> Any:
            x = self.blocks(self.embedding(windows[:, :-1]) + self.positions.weight)
            logits = functional.linear(self.norm(x), self.embedding.weight)
            return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    class PeerTrainer:
        def __init__(self) -> None:
            self.model = PeerModel()
            matrices = [w for w in self.model.parameters() if w.ndim == 2]
            vectors = [w for w in self.model.parameters() if w.ndim < 2]
            groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
            self.adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
            self.config = SAME.model_copy(update={"num_steps": num_steps})
            self.rate = optimization.make_schedule(self.config)

        def count_parameters(self) -> int:
            return sum(weight.numel() for weight in self.model.parameters())

        def turns(self) -> Iterator[int]:
            rates = np.asarray(jax.vmap(self.rate)(np.arange(num_steps)))
            for first in range(0, num_steps, TURN_STEPS):
                count = min(TURN_STEPS, num_steps - first)
                windows = torch.from_numpy(sample_windows(tokens, first, count)).long()
                for i in range(count):
                    for group in self.adam.param_groups:
                        group["lr"] = float(rates[first + i])
                    loss = self.model(windows[i])
                    self.adam.zero_grad(set_to_none=True)
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.adam.step()
                yield count

        def loss(self, windows: np.ndarray) -> float:
            with torch.inference_mode():
                totals = [float(self.model(part)) * len(part) for part in torch.from_numpy(windows).long().split(64)]
            return sum(totals) / len(windows)

    return PeerTrainer()


def main() -> None:
    """Run all trainers in turns and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SAME.num_steps, help="steps of `same` and of the peer")
    parser.add_argument("--better", type=int, default=BETTER.num_steps, help="steps of `better`")
    parser.add_argument("--learning-rate", type=float, default=BETTER.learning_rate, help="learning rate of `better`")
    parser.add_argument("--only-better", action="store_true")
    parser.add_argument("--minutes", type=float, help="train `better` alone for this time and report its loss")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.better) <= TURN_STEPS:
        parser.error(f"more than {TURN_STEPS} steps are needed: the first turn compiles and is not timed")
    if arguments.minutes:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        configure_jax(None)
        measure_time_budget(arguments)
        return
    names = ("better",) if arguments.only_better else ("better", "same", "peer")
    runners = {name: runner for name in names if (runner := Runner(name, arguments)).is_available}
    active = list(runners)
    while active:
        active = [name for name in active if runners[name].take_turn()]
    report(runners, arguments.cores)


def report(runners: dict[str, Runner], cores: int) -> None:
    """Print speed and loss of each trainer, beside the peer where there is one."""
    losses = {name: runner.request("loss") for name, runner in runners.items()}
    peer = runners.get("peer")
    absent = {"peer": "absent", "peer_value": None, "ratio": None}
    base = {"peer": "PyTorch, the same model"} if peer else absent
    for name in (name for name in ("same", "better") if name in runners):
        run = runners[name]
        setting = run.settings | SHAPE | {"context_length": CONTEXT_LENGTH, "cores": cores}
        setting |= {"num_parameters": run.num_parameters}
        speed = run.num_timed * BATCH_SIZE * CONTEXT_LENGTH / run.seconds
        seconds = run.seconds * run.num_steps / run.num_timed
        loss = losses[name]
        more = {} if peer is None else compare_speed(run, peer)
        print_record(f"{name}, speed", round(speed, 1), "tokens/s", base | more, seconds, setting)
        more = (
            {} if peer is None else {"peer_value": round(losses["peer"], 4), "ratio": round(loss / losses["peer"], 4)}
        )
        print_record(f"{name}, loss", round(loss, 4), "nats per character", base | more, seconds, setting)
        if name == "better":
            more = {} if peer is None else compare_time(run, peer)
            label = f"better, time to {round(loss, 3)} (target {TARGET}: {loss <= TARGET})"
            print_record(label, round(seconds, 1), "s", base | more, seconds, setting)


def compare_speed(run: Runner, peer: Runner) -> dict[str, float]:
    """Tokens per second of the peer, and the ratios of wall and processor time."""
    speed, peer_speed = run.num_timed / run.seconds, peer.num_timed / peer.seconds
    cpu_ratio = (run.num_timed / run.cpu_seconds) / (peer.num_timed / peer.cpu_seconds)
    peer_value = round(peer_speed * BATCH_SIZE * CONTEXT_LENGTH, 1)
    return {"peer_value": peer_value, "ratio": round(speed / peer_speed, 3), "cpu_ratio": round(cpu_ratio, 3)}


def compare_time(run: Runner, peer: Runner) -> dict[str, float]:
    """Seconds of the peer's whole training, extrapolated, and the ratios of wall and processor time."""
    per_step, peer_per_step = run.num_steps / run.num_timed, SAME.num_steps / peer.num_timed
    seconds, peer_seconds = run.seconds * per_step, peer.seconds * peer_per_step
    cpu_ratio = run.cpu_seconds * per_step / (peer.cpu_seconds * peer_per_step)
    return {
        "peer_value": round(peer_seconds, 1),
        "ratio": round(seconds / peer_seconds, 3),
        "cpu_ratio": round(cpu_ratio, 3),
    }


def measure_time_budget(arguments: argparse.Namespace) -> None:
    """Train for as many steps as the time allows at the speed of the first ones, which determines the schedule."""
    trial, held_out = build_trainer("better", arguments)
    turns = trial.turns()
    next(turns)  # compiles
    started, count = time.perf_counter(), sum(next(turns, 0) for _ in range(10))
    seconds_per_step = (time.perf_counter() - started) / count
    num_steps = int(0.95 * 60 * arguments.minutes / seconds_per_step)
    trainer = Trainer(trial.model_config, trial.config.model_copy(update={"num_steps": num_steps}), trial.tokens)
    started = time.perf_counter()
    for _ in trainer.turns():
        if time.perf_counter() - started >= 60 * arguments.minutes:
            break
    seconds = time.perf_counter() - started
    setting = trainer.config.model_dump() | SHAPE | {"cores": arguments.cores}
    name = f"the best in {arguments.minutes:g} minutes"
    print_record(name, round(trainer.loss(held_out), 4), "nats per character", {}, seconds, setting)


def print_record(
    name: str, value: float, unit: str, more: dict[str, Any], seconds: float, setting: dict[str, Any]
) -> None:
    """Print one result as a JSON line."""
    record = {"name": f"lm_train: {name}", "value": value, "unit": unit, "se": None} | more
    print(json.dumps(record | {"seconds": round(seconds, 1), "setting": setting}), flush=True)


if __name__ == "__main__":
    main()
