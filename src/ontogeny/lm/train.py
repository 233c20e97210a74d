"""Training a language model on a person's own text, in a folder from which a killed run goes on.

A run is determined by its plan, its files and its seed: the weights have the same bits however often it was killed and
resumed. The folder is made whole, with `spec.json`, `tokenizer.json` and the tokens, before the first step; then
`records.jsonl` grows (a line per step, one more where the held-out text was scored), `timing.jsonl` beside it, and
`checkpoint.*`; at the end there are `weights.*` and it is finished.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import TransformerConfig, make_config
from ontogeny.errors import BadInput, require_at_least
from ontogeny.lm import corpus, optimization, sizes
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.corpus import Corpus
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.runs import checkpoint
from ontogeny.runs.files import sync_folder, write_bytes, write_json
from ontogeny.runs.folder import library_versions, locked
from ontogeny.runs.formats import FORMATS, JSON_REPORT
from ontogeny.types import Weights

RECORDS, TIMING = "records.jsonl", "timing.jsonl"
DISPATCH = 10  # steps in one
LOOKS = 20  # how often the held-out text is scored on the way
HELD_OUT_WINDOWS = 256  # the most windows of it that are scored then
MOST_SEED = 2**31 - 1


class TrainConfig(NamedTuple):
    """What a person may say about a training; None is derived from `size` and the text."""

    size: str = "nano"
    architecture: str = "gpt2"
    tokenizer: str = "bpe"
    vocabulary: int = 1024  # of BPE
    held_out: float = 0.1
    split: str = "tail"
    layers: int | None = None
    heads: int | None = None
    width: int | None = None
    context: int | None = None
    batch: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: float = 0.05
    decay: str = "cosine"
    precision: str = "auto"  # bfloat16 on an accelerator
    seed: int = 0


class Moment(NamedTuple):
    """Where a training stands, for whoever looks on."""

    step: int
    steps: int
    tokens: int  # in one step
    loss: float
    held_out: float | None  # nats per token, when last scored


def train(
    plan: TrainConfig,
    files: Sequence[Path | str],
    out: Path | str,
    *,
    on_progress: Callable[[Moment], None] | None = None,
    every: float = 10.0,
) -> Path:
    """Trains on text files to the end in the folder `out` and returns it.

    An unfinished run of the same plan and files is resumed; a finished one, another's, and a folder that holds
    something else raise `BadInput` and stay as they are. `every`: seconds between checkpoints.
    """
    out = Path(out)
    if not every >= 0:
        raise BadInput(f"the seconds between checkpoints must be at least 0, not {every}")
    plan = _checked(plan)
    sources = corpus.look_at([Path(file) for file in files])
    asked = plan._asdict() | {"files": [{"name": s.path.name, "bytes": s.bytes, "sha256": s.sha256} for s in sources]}
    if out.exists():
        _refuse_foreign(out, asked)
    else:
        _make_folder(plan, sources, asked, out)
    with locked(out):
        _refuse_foreign(out, asked)
        _run(out, plan, on_progress, every)
    return out


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's records; a last one without its end is left out."""
    path = folder / RECORDS
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadInput(f"'{path}' is damaged: it holds lines that are no records") from None


def _checked(plan: TrainConfig) -> TrainConfig:
    if not 0 <= plan.seed <= MOST_SEED:
        raise BadInput(f"the seed must lie between 0 and {MOST_SEED}, not {plan.seed}")
    if plan.precision not in ("auto", *optimization.PRECISIONS):
        known = ", ".join(("auto", *optimization.PRECISIONS))
        raise BadInput(f"the setting 'precision' must be one of {known}, not '{plan.precision}'")
    if plan.precision == "auto":
        plan = plan._replace(precision="float32" if jax.default_backend() == "cpu" else "bfloat16")
    size = sizes.size(plan.size)
    given = {key: getattr(plan, key) for key in size._fields}
    plan = plan._replace(**{key: getattr(size, key) if value is None else value for key, value in given.items()})
    if plan.steps is not None:
        require_at_least(1, steps=plan.steps)
    _config(plan, 257)
    _recipe(plan, plan.steps or 1)
    return plan


def _config(plan: TrainConfig, vocabulary: int) -> TransformerConfig:
    assert plan.context and plan.layers and plan.heads and plan.width
    shape = {"num_layers": plan.layers, "num_heads": plan.heads, "width": plan.width}
    return make_config(plan.architecture, vocabulary, plan.context, **shape)


def _recipe(plan: TrainConfig, steps: int) -> OptimizerConfig:
    same = {key: getattr(plan, key) for key in OptimizerConfig._fields if key in TrainConfig._fields and key != "steps"}
    return optimization.checked(OptimizerConfig(steps=steps, **same))


def _make_folder(plan: TrainConfig, sources: Sequence[corpus.Source], asked: dict[str, Any], out: Path) -> None:
    """The folder with its corpus and spec, whole or not at all."""
    parts = corpus.divide(sources, plan.split, plan.held_out, plan.seed)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    _remove_left_behind(out)
    try:
        temporary.mkdir(parents=True)
        # An alphabet is of the whole text, so that what is held out can be scored; pairs are counted in training alone.
        seen = parts["training"] + (parts["held_out"] if plan.tokenizer == "characters" else [])
        texts = tokenizers.in_pieces(text for passage in seen for text in corpus.read(passage))
        tokenizer = tokenizers.make(plan.tokenizer, plan.vocabulary, texts)
        config = _config(plan, tokenizer.size)
        made = corpus.write(temporary, parts, tokenizer, config.context_length)
        per_step = config.context_length * (plan.batch or 1) * plan.accumulate
        numbers = trees.num_elements(models.template(config))
        steps = plan.steps or sizes.steps(numbers, len(made.training), per_step)
        write_bytes(temporary / tokenizers.FILE, tokenizer.as_json().encode())
        spec = {
            "format": FORMATS[JSON_REPORT],
            "kind": models.KIND,
            "run": asked,
            "config": config._asdict(),
            "recipe": _recipe(plan, steps)._asdict(),
            "numbers": numbers,
        }
        write_json(temporary / models.SPEC, spec)
        os.rename(temporary, out)
    except OSError as error:
        raise BadInput(f"the folder '{out}' cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(out.parent)


def _remove_left_behind(out: Path) -> None:
    """What processes that were killed while they made this folder have left beside it."""
    for path in out.parent.glob(f".{out.name}.*.tmp"):
        process = path.name.split(".")[-2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _refuse_foreign(out: Path, asked: dict[str, Any]) -> None:
    if not out.is_dir():
        raise BadInput(f"'{out}' exists and is not a folder; not overwritten")
    if not (out / models.SPEC).exists():
        raise BadInput(f"the folder '{out}' exists and holds no run; not overwritten")
    if not models.is_language(out) or models.read_spec(out)["run"] != json.loads(json.dumps(asked)):
        raise BadInput(f"the folder '{out}' holds a run of another spec; not overwritten")
    if checkpoint.exists(out, models.WEIGHTS):
        raise BadInput(f"the folder '{out}' holds a finished run; not overwritten")


def _run(out: Path, plan: TrainConfig, on_progress: Callable[[Moment], None] | None, every: float) -> None:
    config, how = models.read_config(out), OptimizerConfig(**models.read_spec(out)["recipe"])
    texts = corpus.load(out)
    weights = jax.jit(optimization.born, static_argnums=(1, 2))(jax.random.key(plan.seed), config, how)
    shards, done = optimization.shards(how), 0
    versions = library_versions() | {"shards": shards}
    if checkpoint.exists(out, "checkpoint"):
        found = checkpoint.read_metadata(out, "checkpoint")
        _same_versions(found.get("versions"), versions, out)
        weights, done = checkpoint.load(out, "checkpoint", weights), found["step"]
    weights = optimization.placed(weights, shards)
    looks = {round(how.steps * (i + 1) / LOOKS) for i in range(LOOKS)}
    held_out = next((r["held_out"] for r in reversed(_kept(out / RECORDS, done)) if "held_out" in r), None)
    _kept(out / TIMING, done)
    per_step = how.batch * how.accumulate * config.context_length
    with (out / RECORDS).open("ab") as records, (out / TIMING).open("ab") as timing:
        saved = time.perf_counter()
        while done < how.steps:
            started = time.perf_counter()
            stop = min(done - done % DISPATCH + DISPATCH, how.steps)
            shape = (stop - done, how.accumulate, how.batch)
            tokens = corpus.sample_batches(texts.training, plan.seed, done, shape, config.context_length)
            weights, info = optimization.take_steps(config, how, weights, tokens, shards=shards)
            info = jax.device_get(info)
            lines = [
                {"step": done + i + 1, "tokens": (done + i + 1) * per_step} | {k: _plain(v[i]) for k, v in info.items()}
                for i in range(stop - done)
            ]
            if looks & set(range(done + 1, stop + 1)):
                held_out = _held_out(config, how, weights, texts, shards)
                lines.append({"step": stop, "tokens": stop * per_step, "held_out": _plain(held_out)})
            done = stop
            _write_lines(records, lines)
            now = time.perf_counter()
            _write_lines(timing, [{"step": done, "seconds": round(now - started, 6)}])
            if now - saved >= every or done == how.steps:
                for file in (records, timing):  # a checkpoint counts on the lines before it
                    file.flush()
                    os.fsync(file.fileno())
                checkpoint.save(out, "checkpoint", weights, {"step": done, "versions": versions})
                saved = now
            if on_progress is not None:
                on_progress(Moment(done, how.steps, per_step, float(info["loss"][-1]), held_out))
    if not trees.is_finite(weights.content):
        raise BadInput(f"the training in '{out}' went astray: its weights are not finite; try a lower --learning-rate")
    about = {"step": done, "tokens": done * per_step, "held_out": held_out, "versions": versions}
    checkpoint.save(out, models.WEIGHTS, weights.content, about, write_once=True)


def _held_out(config: TransformerConfig, how: OptimizerConfig, weights: Weights, texts: Corpus, shards: int) -> float:
    """The mean loss, in nats per token, of windows spread evenly over the held-out text."""
    windows = corpus.spaced_windows(texts.held_out, config.context_length, HELD_OUT_WINDOWS)
    parts = [windows[i : i + how.batch] for i in range(0, len(windows), how.batch)]
    filled = [np.concatenate([part, np.repeat(part[:1], how.batch - len(part), axis=0)]) for part in parts]
    scored = [
        np.asarray(optimization.losses(config, how.precision, weights.content, part, shards=shards)) for part in filled
    ]
    return float(np.concatenate([s[: len(p)] for s, p in zip(scored, parts, strict=True)]).mean(dtype=np.float64))


def _write_lines(file: Any, lines: list[dict[str, Any]]) -> None:
    file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())


def _kept(path: Path, done: int) -> list[dict[str, Any]]:
    """Drops the lines of steps that will be taken again, and one without its end; returns the others."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if (found := json.loads(line))["step"] <= done:
                kept.append(found)
    data = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if data != path.read_bytes():
        write_bytes(path, data)
    return kept


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _same_versions(found: Any, versions: dict[str, Any], out: Path) -> None:
    for name, value in versions.items():
        was = found.get(name) if isinstance(found, dict) else None
        if was != value:
            raise BadInput(
                f"the run in '{out}' was begun with {name} {was}, here is {value}: it would not end in the same bits"
            )
