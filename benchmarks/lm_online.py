"""What learning online is worth and what it costs: trained on one text, then reading another, one JSON line a figure.

    python benchmarks/lm_online.py --train shakespeare.txt                  # reads Python's own manual, part of Python
    python benchmarks/lm_online.py --train shakespeare.txt --text other.txt --learning decay=0.01,rehearsal_batch_size=8
    python benchmarks/lm_online.py --train shakespeare.txt --front          # saving against forgetting, plan by plan

The model is trained in --run (what is finished there is not done again). The peer is an adaptive n-gram of order 5 by
Witten and Bell over the same tokens, from the training text's counts. `mixture` is both together; `from nothing` is the
same network reading the same text online without having been trained. Bits are per byte, 95 % intervals over stretches
of 1,024 tokens; what is forgotten is nats per token on what the run held out.
"""

import argparse
import json
import math
import time
from pathlib import Path

import jax
import numpy as np

from ontogeny.content.transformer import init_weights
from ontogeny.lm import corpus, evaluate, ngram, online, online_learner, train
from ontogeny.lm import model as models
from ontogeny.runs import checkpoint

SHORT = 200_000  # bytes of a text that are read
FRONT = (
    "rehearsal_batch_size=0,learning_rate=1e-3",
    "rehearsal_batch_size=0,learning_rate=1e-3,decay=0.02",
    "rehearsal_batch_size=4,learning_rate=1e-3,rehearsal_weight=1.0",
    "rehearsal_batch_size=4,learning_rate=3e-4,rehearsal_weight=1.0",
    "rehearsal_batch_size=4,learning_rate=3e-4",
    "rehearsal_batch_size=4,learning_rate=2e-4,rehearsal_weight=8.0",
    "rehearsal_batch_size=4,learning_rate=1e-4,rehearsal_weight=2.0",
    "rehearsal_batch_size=4,learning_rate=2e-4,decay=0.001",
    "rehearsal_batch_size=4,learning_rate=1e-3,adapter=8",
    "rehearsal_batch_size=8,rehearsal_weight=8.0",
    "",
)


def line(name: str, value: float, unit: str, **more: object) -> None:
    print(json.dumps({"name": f"lm_online: {name}", "value": round(value, 4), "unit": unit} | more), flush=True)


def default_text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("runs/lm_online"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--bytes", type=int, default=SHORT)
    parser.add_argument("--learning", default="")
    parser.add_argument("--front", action="store_true")
    given = parser.parse_args()
    if not checkpoint.exists(given.run, "weights"):
        plan = train.OnlineConfig(tokenizer="bytes", context=128, steps=given.steps)
        train.train(plan, [given.train], given.run)
    model = models.load(given.run)
    texts = {"Python's manual": default_text()} if not given.text else {p.name: p.read_text() for p in given.text}
    for name, text in texts.items():
        tokens = model.tokenizer.encode(text.encode()[: given.bytes].decode(errors="ignore"))
        if given.front:
            front(model, name, tokens)
        else:
            report(model, name, tokens, online_learner.parse_config(given.learning))


def report(model: models.LanguageModel, name: str, tokens: np.ndarray, plan: online_learner.OnlineConfig) -> None:
    began = time.perf_counter()
    found = online.evaluate_online(model, tokens, plan)
    record = online.as_record(model, found, tokens, plan)
    seconds = round(time.perf_counter() - began, 1)
    setting = {"text": name, "bytes": len(tokens), "plan": plan._asdict()}
    grams = n_gram(model, tokens)
    held = held_out(model)
    for cell, part in record["bits_per_byte"].items():
        beside = {"peer": "n-gram online", "peer_value": round(bits(grams["online"]), 4)} if "kept" in cell else {}
        ratio = {"ratio": round(part["mean"] / bits(grams["online"]), 4)} if beside else {}
        line(
            cell,
            part["mean"],
            "bits per byte",
            interval=[part["low"], part["high"]],
            **beside,
            **ratio,
            setting=setting,
        )
    line("saved", record["saved"]["mean"], "share of the frozen bits", **_interval(record["saved"]), setting=setting)
    forgotten = record["forgotten"]
    line("forgotten", forgotten["mean"], "nats per token", **_interval(forgotten), seconds=seconds, setting=setting)
    for kind in ("frozen", "online", "from nothing"):
        line(f"n-gram {kind}", bits(grams[kind]), "bits per byte", setting=setting)
    line(
        "n-gram forgotten",
        float((grams["held after"] - grams["held before"]).mean()),
        "nats per token",
        setting=setting,
    )
    mixture = ngram.mix_predictions(found.online_kept, grams["online"])
    line("mixture", bits(mixture), "bits per byte", setting=setting)
    before = ngram.mix_predictions(held(model.weights), grams["held before"])
    after = ngram.mix_predictions(held(found.weights), grams["held after"])
    line("mixture forgotten", float((after - before).mean()), "nats per token", setting=setting)
    untrained = model._replace(weights=init_weights(jax.random.key(0), model.config))
    nothing = plan._replace(rehearsal_batch_size=0, decay=0.0, fisher_anchor=False)
    nats, _, _ = online.run_condition(
        untrained, online_learner.PretrainedWeights(untrained.weights, None), tokens, nothing, True, True
    )
    line("from nothing", bits(nats), "bits per byte", setting=setting)


def front(model: models.LanguageModel, name: str, tokens: np.ndarray) -> None:
    trained = online_learner.PretrainedWeights(model.weights, None)
    frozen, _, _ = online.run_condition(
        model, trained, tokens, online_learner.OnlineConfig(rehearsal_batch_size=0), True, False
    )
    for text in FRONT:
        began = time.perf_counter()
        plan = online_learner.parse_config(text)
        nats, _, weights = online.run_condition(model, online.pretrained_weights(model, plan), tokens, plan, True, True)
        lost = online.measure_forgetting(model, weights)
        line(
            f"front: {text or 'default'}",
            1 - float(nats.sum() / frozen.sum()),
            "share of the frozen bits saved",
            bits_per_byte=round(bits(nats), 4),
            forgotten=round(lost["mean"], 4),
            forgotten_interval=[round(lost["low"], 4), round(lost["high"], 4)],
            seconds=round(time.perf_counter() - began, 1),
            setting={"text": name, "bytes": len(tokens), "plan": plan._asdict()},
        )


def n_gram(model: models.LanguageModel, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Nats of the control: frozen and online from the training text's counts, online from nothing, and on what the run
    held out before and after."""
    texts = corpus.load_corpus(model.run)
    counted = ngram.NgramModel(model.config.vocab_size)
    counted.read(np.asarray(texts.training))
    held = np.asarray(texts.held_out)
    found = {"held before": counted.read(held, learning=False), "frozen": counted.read(tokens, learning=False)}
    found["online"] = counted.read(tokens)
    found["held after"] = counted.read(held, learning=False)
    found["from nothing"] = ngram.NgramModel(model.config.vocab_size).read(tokens)
    return {name: -np.log(chances)[1:] for name, chances in found.items()}


def held_out(model: models.LanguageModel):
    tokens = np.asarray(corpus.load_corpus(model.run).held_out)
    return lambda weights: evaluate.losses(model._replace(weights=weights), tokens)


def bits(nats: np.ndarray) -> float:
    return float(nats.mean()) / math.log(2)


def _interval(part: dict[str, float]) -> dict[str, list[float]]:
    return {"interval": [round(part["low"], 4), round(part["high"], 4)]}


if __name__ == "__main__":
    main()
