"""The default of `ontogeny lm evaluate --online` beside adaptive n-grams, on five texts named in advance. JSON lines.

    ontogeny lm train tinyshakespeare.txt --tokenizer bytes --architecture llama --optimizer muon \
        --learning-rate 8e-3 --context-length 128 --num-steps 3000 --out runs/shakespeare
    python benchmarks/online_mixture.py --run runs/shakespeare --texts FOLDER

FOLDER holds the files of `TEXTS`, which are not part of the project; a file with other bytes is refused. The run may
have any tokenizer (`--tokenizer bpe`); bits are those of its tokens, per byte of the text. All settings of the mixture,
of the memory and of online learning were chosen on other texts (docs/results/language-models.md names them) and
committed before any of the five was scored: with this list for a tokenizer of bytes, later for BPE. The peers are
adaptive n-grams of order 5 (Witten-Bell) over bytes: one that has counted the training text before, and one that starts
from nothing; both learn each byte after they have predicted it. Intervals are over segments of 1,024 bytes.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import ngram
from ontogeny.errors import BadInput
from ontogeny.lm import byte_decisions, corpus, mixture, online, online_learner
from ontogeny.lm.evaluation import token_bytes
from ontogeny.lm.forgetting import measure_forgetting, measure_mixture_forgetting
from ontogeny.lm.model import LanguageModel, load
from ontogeny.stats import RatioEstimate, ratio_of_sums

NUM_BYTES = 100_000
SEGMENT_BYTES = 1024
NUM_SYMBOLS = 257  # of the n-grams: bytes, and one for the beginning


class Text(NamedTuple):
    """One of the five texts: `NUM_BYTES` bytes of a file."""

    file: str
    offset: int  # beyond the front matter of the books
    source: str
    sha256: str  # of the bytes that are scored


TEXTS = (
    Text(
        "moby_dick.txt",
        20000,
        "Herman Melville, Moby-Dick (1851), Project Gutenberg; copy in github.com/reikapika/nr_coding_challenge",
        "30aff12ea9c9f26a962dc54721515b7af01e2ca52da28ec4e69611235e1c1d06",
    ),
    Text(
        "origin_of_species.txt",
        20000,
        "Charles Darwin, On the Origin of Species (1859), Project Gutenberg; "
        "copy in github.com/reikapika/nr_coding_challenge",
        "84fb0a6596f97d6004e38f2fbe161a48d562bd896c564784b40c1d1486c6b321",
    ),
    Text(
        "pride_and_prejudice.txt",
        20000,
        "Jane Austen, Pride and Prejudice (1813), Project Gutenberg; copy in github.com/sart1223/3rd_Class_Homework",
        "5eae0fb70ea70e45b39b6e21829879229b5dbfb6d0947222fafcb8cd0e5ff70f",
    ),
    Text(
        "rfc2616.txt",
        20000,
        "Fielding et al., RFC 2616, HTTP/1.1 (1999); copy in github.com/kjgrahn/allergy",
        "7c120e99ffaf111e0ea6c02199d97b1ec3e16ecd8098755a89243c3635865b01",
    ),
    Text(
        "typing.py",
        0,
        "CPython 3.11.7, Lib/typing.py: source code and docstrings",
        "3151d2fb35f051f1cd9cc140857fc2b951127c9c5837ad2b94415e25ec7816b3",
    ),
)


def main() -> None:
    """Measures each text and prints its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a file of TEXTS; repeatable")
    arguments = parser.parse_args()
    model = load(arguments.run)
    assert model.run is not None
    trained = ngram.NgramModel(NUM_SYMBOLS)
    trained.predict(to_bytes(model, np.asarray(corpus.load_corpus(model.run).training)))
    for text in TEXTS:
        if not arguments.only or text.file in arguments.only:
            measure(model, trained, text, read(arguments.texts, text))


def read(folder: Path, text: Text) -> bytes:
    """Reads the bytes of a text that are scored, and checks that they are the named ones."""
    content = (folder / text.file).read_bytes()[text.offset :][:NUM_BYTES]
    if hashlib.sha256(content).hexdigest() != text.sha256:
        raise BadInput(f"'{folder / text.file}' is not the text that was named")
    return content


def measure(model: LanguageModel, trained: ngram.NgramModel, text: Text, content: bytes) -> None:
    """Prints the bits per byte of the mixture, of its parts and of the peers, and the forgetting."""
    tokens = model.tokenizer.encode(content.decode(errors="ignore"))  # the last character may be cut
    num_bytes = token_bytes(model, tokens[1:])
    is_scored = np.arange(len(to_bytes(model, tokens))) >= len(to_bytes(model, tokens[:1]))
    peers = {
        "n-gram with the training text": copy.deepcopy(trained).predict(to_bytes(model, tokens)),
        "n-gram from nothing": ngram.NgramModel(NUM_SYMBOLS).predict(to_bytes(model, tokens)),
    }
    peer_bits = {name: -np.log2(probabilities[is_scored]) for name, probabilities in peers.items()}
    config = online_learner.parse_config("", online.EVALUATION_DEFAULTS)
    pretrained = online.pretrained_weights(model, config)
    started = time.perf_counter()
    table = byte_decisions.tabulate(model.tokenizer, model.config.vocab_size, tokens)
    results = {
        is_online: online.run_condition(model, pretrained, tokens, config, True, is_online, table=table)
        for is_online in (True, False)
    }
    network_seconds, started = time.perf_counter() - started, time.perf_counter()
    mixtures = {
        is_online: mixture.mix(table, tokens, probabilities)
        for is_online, result in results.items()
        if (probabilities := result.decision_probabilities) is not None
    }
    mixture_seconds = time.perf_counter() - started
    setting = {
        "text": text.file,
        "bytes": len(is_scored),
        "tokenizer": model.tokenizer.kind,
        "model": str(model.run and model.run.name),
    }
    bits = {
        "mixture": mixtures[True].losses / math.log(2),
        "memory alone": mixtures[True].memory_losses / math.log(2),
        "network alone, online": results[True].losses / math.log(2),
        "network alone, frozen": results[False].losses / math.log(2),
        "mixture with the frozen network": mixtures[False].losses / math.log(2),
    } | peer_bits
    for name, values in bits.items():
        more = {}
        if name not in peer_bits:
            peer = min(peer_bits, key=lambda key: float(peer_bits[key].mean()))
            peer_value = float(peer_bits[peer].mean())
            ratio = float(values.sum() / num_bytes.sum()) / peer_value
            more = {"peer": peer, "peer_value": round(peer_value, 4), "ratio": round(ratio, 4)}
        estimate = mean_per_byte(values, num_bytes if name not in peer_bits else np.ones(len(values)))
        limits = [round(estimate.low, 4), round(estimate.high, 4)]
        print_record(name, estimate.mean, "bits per byte", interval=limits, **more, setting=setting)
    print_record("weights of the mixture", mixtures[True].mean_weights[0], "weight of the network", memory=round(
        mixtures[True].mean_weights[1], 4), setting=setting)  # fmt: skip
    print_record("time of the mixture", mixture_seconds / network_seconds, "share of the network's time",
        seconds=round(network_seconds + mixture_seconds, 1), setting=setting)  # fmt: skip
    forgetting = {"network": measure_forgetting(model, results[True].weights)}
    for name, mixing in (("mixture", True), ("mixture, weights of the parts fixed", False)):
        forgetting[name] = measure_mixture_forgetting(model, results[True].weights, mixtures[True], mixing=mixing)
    for name, estimate in forgetting.items():
        limits = [round(estimate.low, 4), round(estimate.high, 4)]
        print_record(f"forgetting of the {name}", estimate.mean, "nats per token", interval=limits, setting=setting)


def to_bytes(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """The bytes of the text that tokens encode, without separators of documents."""
    return np.frombuffer(b"".join(model.tokenizer.bytes_of(int(token)) for token in tokens), np.uint8).astype(np.int32)


def mean_per_byte(values: np.ndarray, num_bytes: np.ndarray) -> RatioEstimate:
    """The sum of values divided by that of bytes, with an interval over segments of consecutive tokens."""
    segments = ((np.cumsum(num_bytes) - 1) // SEGMENT_BYTES).astype(int)
    return ratio_of_sums(np.bincount(segments, values), np.bincount(segments, num_bytes))


def print_record(name: str, value: float, unit: str, **more: object) -> None:
    """Prints one result as a JSON line."""
    print(json.dumps({"name": f"online_mixture: {name}", "value": round(value, 4), "unit": unit} | more), flush=True)


if __name__ == "__main__":
    main()
