"""The bits that online learning saves on a new text, and the forgetting it causes. One JSON line per result.

    python benchmarks/lm_online.py --train shakespeare.txt              # the new text is Python's manual
    python benchmarks/lm_online.py --train shakespeare.txt --text other.txt --learning decay_rate=0.01
    python benchmarks/lm_online.py --train shakespeare.txt --front      # bits saved and forgetting for many settings

The model is trained in --run, unless that run is finished. The peer is an adaptive n-gram model of order 5 (Witten and
Bell) over the same tokens, which starts with the counts of the training text. `mixture` combines both (the memory of
`ontogeny lm evaluate --online` is measured by online_mixture.py); `from nothing`
is the same network, untrained, that learns the same text online. Losses are in bits per byte with 95 % intervals over
segments of 1,024 tokens. Forgetting is the increase of the loss on the held-out text of the run, in nats per token.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import ngram
from ontogeny.content.transformer import TransformerWeights, init_weights
from ontogeny.lm import corpus, online
from ontogeny.lm.evaluation import token_losses
from ontogeny.lm.forgetting import measure_forgetting
from ontogeny.lm.model import LanguageModel, load
from ontogeny.lm.online_learner import OnlineConfig, PretrainedWeights, parse_config
from ontogeny.lm.training import train
from ontogeny.runs import checkpoint

DEFAULT_BYTES = 200_000  # the length to which a text is cut
FRONT = (
    "rehearsal_batch_size=0,learning_rate=1e-3",
    "rehearsal_batch_size=0,learning_rate=1e-3,decay_rate=0.02",
    "rehearsal_batch_size=4,learning_rate=1e-3,rehearsal_weight=1.0",
    "rehearsal_batch_size=4,learning_rate=3e-4,rehearsal_weight=1.0",
    "rehearsal_batch_size=4,learning_rate=3e-4",
    "rehearsal_batch_size=4,learning_rate=2e-4,rehearsal_weight=8.0",
    "rehearsal_batch_size=4,learning_rate=1e-4,rehearsal_weight=2.0",
    "rehearsal_batch_size=4,learning_rate=2e-4,decay_rate=0.001",
    "rehearsal_batch_size=4,learning_rate=1e-3,adapter_rank=8",
    "rehearsal_batch_size=8,rehearsal_weight=8.0",
    "",
)


def print_record(name: str, value: float, unit: str, **more: object) -> None:
    """Print one result as a JSON line."""
    print(json.dumps({"name": f"lm_online: {name}", "value": round(value, 4), "unit": unit} | more), flush=True)


def default_text() -> str:
    """The manual of Python, which every installation includes."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def main() -> None:
    """Train the model unless its run is finished, then measure each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/lm_online"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--bytes", type=int, default=DEFAULT_BYTES)
    parser.add_argument("--learning", default="")
    parser.add_argument("--front", action="store_true")
    arguments = parser.parse_args()
    if not checkpoint.exists(arguments.run, "weights"):
        config = {"tokenizer": "bytes", "context_length": 128, "num_steps": arguments.steps}
        train(config, [arguments.train], arguments.run)
    model = load(arguments.run)
    paths = arguments.text or []
    texts = {path.name: path.read_text() for path in paths} if paths else {"Python's manual": default_text()}
    for name, text in texts.items():
        tokens = model.tokenizer.encode(text.encode()[: arguments.bytes].decode(errors="ignore"))
        if arguments.front:
            measure_front(model, name, tokens)
        else:
            measure(model, name, tokens, parse_config(arguments.learning))


def measure(model: LanguageModel, name: str, tokens: np.ndarray, config: OnlineConfig) -> None:
    """Print the results of all conditions and controls for one text."""
    started = time.perf_counter()
    evaluation = online.evaluate_online(model, tokens, config, use_memory=False)
    record = online.as_record(model, evaluation, tokens, config)
    seconds = round(time.perf_counter() - started, 1)
    setting = {"text": name, "bytes": len(tokens), "learning": config.model_dump()}
    controls = n_gram_losses(model, tokens)
    peer_bits = bits(controls["online"])
    for condition, estimate in record["bits_per_byte"].items():
        more = {"peer": "n-gram online", "peer_value": round(peer_bits, 4)}
        more |= {"ratio": round(estimate["mean"] / peer_bits, 4)}
        more = more if "full_context" in condition else {}
        limits = [estimate["low"], estimate["high"]]
        print_record(condition, estimate["mean"], "bits per byte", interval=limits, **more, setting=setting)
    saving, forgetting = record["bits_saved"], record["forgetting"]
    print_record("saved", saving["mean"], "share of the frozen bits", **_interval(saving), setting=setting)
    more = _interval(forgetting) | {"seconds": seconds, "setting": setting}
    print_record("forgotten", forgetting["mean"], "nats per token", **more)
    for kind in ("frozen", "online", "from nothing"):
        print_record(f"n-gram {kind}", bits(controls[kind]), "bits per byte", setting=setting)
    increase = float((controls["held-out after"] - controls["held-out before"]).mean())
    print_record("n-gram forgotten", increase, "nats per token", setting=setting)
    measure_mixture(model, evaluation, controls, setting)
    untrained = model._replace(weights=init_weights(jax.random.key(0), model.config))
    plain = config.model_copy(update={"rehearsal_batch_size": 0, "decay_rate": 0.0, "fisher_decay": False})
    pretrained = PretrainedWeights(untrained.weights, None)
    result = online.run_condition(untrained, pretrained, tokens, plain, True, True)
    print_record("from nothing", bits(result.losses), "bits per byte", setting=setting)


def measure_mixture(
    model: LanguageModel,
    evaluation: online.OnlineEvaluation,
    controls: dict[str, np.ndarray],
    setting: dict[str, object],
) -> None:
    """Print the results of the mixture of network and n-gram model."""
    held_out = held_out_losses(model)
    mixture = ngram.mix_predictions(evaluation.online_full_context, controls["online"])
    print_record("mixture", bits(mixture), "bits per byte", setting=setting)
    before = ngram.mix_predictions(held_out(model.weights), controls["held-out before"])
    after = ngram.mix_predictions(held_out(evaluation.weights), controls["held-out after"])
    print_record("mixture forgotten", float((after - before).mean()), "nats per token", setting=setting)


def measure_front(model: LanguageModel, name: str, tokens: np.ndarray) -> None:
    """Print bits saved and forgetting for several settings."""
    pretrained = PretrainedWeights(model.weights, None)
    frozen_config = OnlineConfig(rehearsal_batch_size=0)
    frozen = online.run_condition(model, pretrained, tokens, frozen_config, True, False).losses
    for learning in FRONT:
        started = time.perf_counter()
        config = parse_config(learning)
        pretrained = online.pretrained_weights(model, config)
        result = online.run_condition(model, pretrained, tokens, config, True, True)
        forgetting = measure_forgetting(model, result.weights)
        more = {"bits_per_byte": round(bits(result.losses), 4), "forgotten": round(forgetting.mean, 4)}
        more |= {"forgotten_interval": [round(forgetting.low, 4), round(forgetting.high, 4)]}
        more |= {"seconds": round(time.perf_counter() - started, 1)}
        more |= {"setting": {"text": name, "bytes": len(tokens), "learning": config.model_dump()}}
        share = 1 - float(result.losses.sum() / frozen.sum())
        print_record(f"front: {learning or 'default'}", share, "share of the frozen bits saved", **more)


def n_gram_losses(model: LanguageModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The losses of the n-gram model, in nats per token.

    `frozen` and `online` start with the counts of the training text, `from nothing` without counts. `held-out before`
    and `held-out after` are losses on the held-out text of the run before and after online learning.
    """
    texts = corpus.load_corpus(training_run(model))
    control = ngram.NgramModel(model.config.vocab_size)
    control.predict(np.asarray(texts.training))
    held_out = np.asarray(texts.held_out)
    probabilities = {"held-out before": control.predict(held_out, learning=False)}
    probabilities["frozen"] = control.predict(tokens, learning=False)
    probabilities["online"] = control.predict(tokens)
    probabilities["held-out after"] = control.predict(held_out, learning=False)
    probabilities["from nothing"] = ngram.NgramModel(model.config.vocab_size).predict(tokens)
    return {name: -np.log(values)[1:] for name, values in probabilities.items()}


def held_out_losses(model: LanguageModel) -> Callable[[TransformerWeights], np.ndarray]:
    """A function of weights that returns their losses on the held-out text of the run."""
    tokens = np.asarray(corpus.load_corpus(training_run(model)).held_out)
    return lambda weights: token_losses(model._replace(weights=weights), tokens)


def training_run(model: LanguageModel) -> Path:
    """The folder of the run that trained the model."""
    assert model.run is not None
    return model.run


def bits(losses: np.ndarray) -> float:
    """Mean bits per token; a token is a byte."""
    return float(losses.mean()) / math.log(2)


def _interval(estimate: dict[str, float]) -> dict[str, list[float]]:
    return {"interval": [round(estimate["low"], 4), round(estimate["high"], 4)]}


if __name__ == "__main__":
    main()
