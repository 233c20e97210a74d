"""Training of a language model on the user's own text, in a folder from which a killed run resumes.

Config, files and seed determine a run: the weights are bitwise reproducible however often it was killed and resumed.
The folder holds `spec.json`, `tokenizer.json` and the tokens before the first step; then `records.jsonl` (one record
per step, and one more where the held-out text was scored), `timing.jsonl`, `checkpoint.*` and `best.*` (the weights of
the lowest held-out loss so far); at the end `weights.*`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ontogeny import trees
from ontogeny.content.transformer import TransformerConfig, TransformerWeights, make_config
from ontogeny.errors import BadInput
from ontogeny.lm import corpus, fine_tuning, lengthening, optimization, sizes
from ontogeny.lm import model as models
from ontogeny.lm import tokenizer as tokenizers
from ontogeny.lm.config import TrainConfig
from ontogeny.lm.corpus import Corpus, Passage, TextFile
from ontogeny.lm.evaluation import MAX_OVERLAP
from ontogeny.lm.model import LanguageModel
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.lm.overlap import measure_overlap
from ontogeny.lm.tokenizer import Tokenizer
from ontogeny.rng import key_from_seed
from ontogeny.runs import checkpoint, formats
from ontogeny.runs.files import write_bytes
from ontogeny.runs.folder import RunDescription, claim, library_versions
from ontogeny.runs.recorder import RunRecorder
from ontogeny.types import Weights
from ontogeny.validation import validate

STEPS_PER_CALL = 10  # steps of one compiled call
NUM_EVALUATIONS = 20  # how often the held-out text is scored during a training
MAX_OVERLAP_PIECES = 16  # MiB of the held-out text that are searched for training text
MAX_EVALUATION_WINDOWS = 256  # windows of it that are scored then


class TrainProgress(NamedTuple):
    """The progress of a training after a compiled call.

    Attributes:
        tokens_per_step: Predicted tokens of one step.
        loss: Nats per token of the last step.
        held_out_loss: Nats per token when the held-out text was last scored; None before.
    """

    step: int
    num_steps: int
    tokens_per_step: int
    loss: float
    held_out_loss: float | None


class TrainStart(NamedTuple):
    """A training before its first step of this call.

    Attributes:
        step: Steps that were taken before; more than 0 where the run is resumed.
        num_trained: Parameters that the training changes, those of adapters or all.
        num_tokens: Of the training and of the held-out text.
        overlap: The share of the 13-grams of words of held-out files that the training files contain; 0 where it is at
            most `evaluation.MAX_OVERLAP`, and of a split by tails, whose files are in both parts.
        settings: Of the training, by name; a setting that has no meaning for it is absent.
    """

    step: int
    num_steps: int
    num_parameters: int
    num_trained: int
    num_tokens: tuple[int, int]
    model: TransformerConfig
    optimizer: OptimizerConfig
    overlap: float
    settings: dict[str, Any]


OnTrainProgress = Callable[[TrainProgress], None]
OnTrainStart = Callable[[TrainStart], None]
OnTrainEvaluation = Callable[[TrainProgress, LanguageModel], None]


CheckTokenizer = Callable[[Tokenizer, int], None]


class TrainCallbacks(NamedTuple):
    """Functions that a training calls.

    Attributes:
        on_start: Called before the first step, when the texts are read and tokenized.
        on_progress: Called after each compiled call.
        on_evaluation: Called when the held-out text has been scored and the records are written, with the present
            weights, from which the caller may sample.
    """

    on_start: OnTrainStart | None = None
    on_progress: OnTrainProgress | None = None
    on_evaluation: OnTrainEvaluation | None = None


def train(
    config: TrainConfig | Mapping[str, Any],
    files: Sequence[Path | str],
    out: Path | str,
    *,
    initial: LanguageModel | None = None,
    lengthen: bool = False,
    on_progress: OnTrainProgress | None = None,
    on_start: OnTrainStart | None = None,
    on_evaluation: OnTrainEvaluation | None = None,
    check_tokenizer: CheckTokenizer | None = None,
    checkpoint_interval: float = 10.0,
) -> Path:
    """Train a language model on text files.

    An unfinished run of the same config and files is resumed.

    Args:
        config: A config, or its settings.
        files: Texts in UTF-8; each is one document.
        out: The folder of the run; it is created where it is absent.
        initial: A model whose weights, shape and tokenizer the training begins with; by default the weights are random
            and the tokenizer is trained.
        lengthen: Whether a finished run of this config, apart from the number of steps, is continued to a larger one.
        on_progress: See `TrainCallbacks`, as for the next two.
        on_start: Called before the first step.
        on_evaluation: Called when the held-out text has been scored.
        check_tokenizer: Called with the tokenizer and the context length as soon as they are known. It may raise
            `BadInput`; a new folder is then removed, and an old one stays untouched.
        checkpoint_interval: Seconds between checkpoints, at least 0; 0 saves one after each compiled call.

    Returns:
        The folder.

    Raises:
        BadInput: A setting is out of its range, a file cannot be used, or the folder holds a finished run, another run
            or anything else, or no finished run to lengthen; such a folder stays untouched.
    """
    out = Path(out)
    if not checkpoint_interval >= 0:
        raise BadInput(f"the seconds between checkpoints must be at least 0, not {checkpoint_interval}")
    config = _complete(validate(TrainConfig, dict(config), "lm train"), initial)
    num_requested_steps = config.num_steps or 0
    texts = corpus.scan_files([Path(file) for file in files])
    spec = config.model_dump() | {
        "files": [{"name": text.path.name, "num_bytes": text.num_bytes, "sha256": text.sha256} for text in texts]
    }
    if initial is not None:
        spec["initial"] = fine_tuning.describe(initial)
    if lengthen:
        spec = lengthening.original_spec(out, spec)
    else:
        lengthening.refuse_finished(out, spec)
    # Like a version, the number of shards changes the bits of the results, so a run is resumed only with the same one.
    versions = library_versions() | {"shards": optimization.count_shards(_optimizer_config(config, 1))}
    with (
        claim(
            out,
            formats.LANGUAGE_MODEL_RUN,
            spec,
            versions=versions,
            final=None if lengthen else f"{models.WEIGHTS}.json",
            prepare=lambda folder: _prepare(folder, config, texts, initial, check_tokenizer),
        ),
        RunRecorder(out, checkpoint_interval) as recorder,
    ):
        if check_tokenizer is not None:
            check_tokenizer(models.read_tokenizer(out), models.read_config(out).context_length)
        if lengthen:
            lengthening.begin(out, num_requested_steps)
        callbacks = TrainCallbacks(on_start, on_progress, on_evaluation)
        _run(out, config.seed, recorder, versions["shards"], callbacks)
    return out


def _complete(config: TrainConfig, initial: LanguageModel | None) -> TrainConfig:
    """The config with the defaults of its size, or of the model to begin with, and device."""
    size = sizes.find_size(config.size)
    defaults = {name: value for name, value in size._asdict().items() if getattr(config, name) is None}
    if config.precision == "auto":
        defaults["precision"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if initial is not None:
        precision = defaults.get("precision", config.precision)
        return fine_tuning.complete_config(config, initial).model_copy(update={"precision": precision})
    if config.adapter_rank:
        raise BadInput("--adapter-rank requires --from: adapters are added to the weights of another model")
    config = config.model_copy(update=defaults)
    # With the smallest vocabulary that is possible; raises `BadInput` before the texts are read.
    _model_config(config, tokenizers.NUM_BYTES + 1)
    return config


def _model_config(config: TrainConfig, vocab_size: int) -> TransformerConfig:
    """The config of the model that a training config describes."""
    assert config.context_length and config.num_layers and config.num_heads and config.width
    return make_config(
        config.architecture,
        vocab_size,
        config.context_length,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        width=config.width,
        num_kv_heads=config.num_kv_heads,
    )


def _optimizer_config(config: TrainConfig, num_steps: int) -> OptimizerConfig:
    """The config of the optimizer that a training config describes."""
    names = OptimizerConfig.model_fields.keys() & TrainConfig.model_fields.keys() - {"num_steps"}
    return OptimizerConfig(num_steps=num_steps, **{name: getattr(config, name) for name in names})


def _prepare(
    folder: Path,
    config: TrainConfig,
    texts: Sequence[TextFile],
    initial: LanguageModel | None,
    check_tokenizer: CheckTokenizer | None,
) -> dict[str, Any]:
    """Write tokenizer and tokens into the folder of a new run, and return the details for `spec.json`."""
    parts = corpus.split_files(texts, config.split, config.held_out_fraction, config.seed)
    if initial is None:
        tokenizer, details = _train_tokenizer(config, parts), {}
        model_config = _model_config(config, tokenizer.size)
        write_bytes(folder / tokenizers.FILE, tokenizer.as_json().encode())
    else:
        tokenizer, context_length = initial.tokenizer, config.context_length or initial.config.context_length
        model_config, details = fine_tuning.write_base(folder, initial, context_length)
    if check_tokenizer is not None:
        check_tokenizer(tokenizer, model_config.context_length)
    tokens = corpus.write_corpus(folder, parts, tokenizer, model_config.context_length)
    num_parameters = trees.num_elements(models.make_template(model_config))
    tokens_per_step = model_config.context_length * (config.batch_size or 1) * config.gradient_accumulation
    num_steps = config.num_steps or (
        sizes.count_steps(num_parameters, len(tokens.training), tokens_per_step)
        if initial is None
        else fine_tuning.count_steps(len(tokens.training), tokens_per_step)
    )
    return details | {
        "model": model_config._asdict(),
        "optimization": _optimizer_config(config, num_steps).model_dump(),
        "num_parameters": num_parameters,
        "overlap": _measure_overlap(parts["held_out"], tokenizer, tokens) if config.split == "document" else 0.0,
    }


def _train_tokenizer(config: TrainConfig, parts: Mapping[str, Sequence[Passage]]) -> Tokenizer:
    """The tokenizer of a new run.

    The alphabet is that of the whole text, so that held-out text can be scored; BPE sees the training text alone.
    """
    passages = [*parts["training"], *(parts["held_out"] if config.tokenizer == "characters" else [])]
    pieces = tokenizers.split_text(text for passage in passages for text in corpus.read_passage(passage))
    return tokenizers.train_tokenizer(config.tokenizer, config.vocab_size, pieces)


def _measure_overlap(passages: Sequence[Passage], tokenizer: Tokenizer, texts: Corpus) -> float:
    """The share of the 13-grams of held-out files that the training files contain; 0 where it is negligible."""
    pieces = (text for passage in passages for text in corpus.read_passage(passage))
    fraction = measure_overlap("".join(islice(pieces, MAX_OVERLAP_PIECES)), tokenizer, texts.training).fraction
    return fraction if fraction > MAX_OVERLAP else 0.0


class _Setting(NamedTuple):
    """What stays the same during a training."""

    folder: Path
    seed: int
    model_config: TransformerConfig
    config: OptimizerConfig
    texts: Corpus
    base: TransformerWeights | None  # the weights to which adapters are added
    num_shards: int

    @property
    def tokens_per_step(self) -> int:
        """The predicted tokens of one step."""
        return self.config.batch_size * self.config.gradient_accumulation * self.model_config.context_length

    def full_weights(self, content: Any) -> TransformerWeights:
        """The weights of the model."""
        return content if self.base is None else _full_weights(self.config, self.base, content)


class _Progress(NamedTuple):
    """What a checkpoint holds beside the weights; None where the held-out text was not scored yet."""

    step: int = 0
    held_out_loss: float | None = None
    best_loss: float | None = None


def _run(folder: Path, seed: int, recorder: RunRecorder, num_shards: int, callbacks: TrainCallbacks) -> None:
    """Train from the last checkpoint, or from the beginning, to the end."""
    description, model_config = models.read_description(folder), models.read_config(folder)
    config = lengthening.read_optimization(folder, description)
    base = models.read_base(folder, model_config)
    init = jax.jit(optimization.init_training, static_argnums=(1, 2))
    weights, progress = init(key_from_seed(seed), model_config, config, base), _Progress()
    adapter_base = optimization.put_on_shards(jax.device_put(base), num_shards) if config.adapter_rank else None
    texts = corpus.load_corpus(folder)
    setting = _Setting(folder, seed, model_config, config, texts, adapter_base, num_shards)
    resumed = recorder.resume(weights)
    if resumed is not None:
        weights, former = resumed
        progress = _Progress(former["step"], former["held_out_loss"], former.get("best_loss"))
    if callbacks.on_start is not None:
        callbacks.on_start(_describe_start(setting, description, progress.step, trees.num_elements(weights.content)))
    weights = optimization.put_on_shards(weights, num_shards)
    evaluations = {round(config.num_steps * (i + 1) / NUM_EVALUATIONS) for i in range(NUM_EVALUATIONS)}
    while progress.step < config.num_steps:
        started, first = time.perf_counter(), progress.step
        step = min(first - first % STEPS_PER_CALL + STEPS_PER_CALL, config.num_steps)
        weights, loss = _advance(setting, weights, first, step, recorder)
        progress = progress._replace(step=step)
        is_scored = bool(evaluations & set(range(first + 1, step + 1)))
        if is_scored:
            progress = _score(setting, weights.content, progress, recorder)
        recorder.append_timing({"step": step, "seconds": round(time.perf_counter() - started, 6)})
        recorder.save(weights, progress._asdict(), is_last=step == config.num_steps)
        state = TrainProgress(step, config.num_steps, setting.tokens_per_step, loss, progress.held_out_loss)
        if callbacks.on_progress is not None:
            callbacks.on_progress(state)
        if callbacks.on_evaluation is not None and is_scored:
            recorder.flush()
            full_weights = setting.full_weights(weights.content)
            model = LanguageModel(model_config, full_weights, models.read_tokenizer(folder), folder)
            callbacks.on_evaluation(state, model)
    _finish(setting, setting.full_weights(weights.content), progress, recorder)


def _describe_start(setting: _Setting, description: RunDescription, step: int, num_trained: int) -> TrainStart:
    """What a caller receives before the first step."""
    config, texts, details = setting.config, setting.texts, description.details
    settings = {
        name: setting_value
        for name, setting_value in (description.spec | {"num_steps": config.num_steps}).items()
        if name in TrainConfig.model_fields and setting_value is not None
    }
    absent = {"size", "architecture"} if "initial" in description.spec else set[str]()  # those of the other model
    if settings["tokenizer"] != "bpe":
        absent.add("vocab_size")
    settings = {name: settings[name] for name in settings if name not in absent}
    num_tokens = len(texts.training), len(texts.held_out)
    counts = details["num_parameters"], num_trained, num_tokens
    overlap = details.get("overlap", 0.0)
    return TrainStart(step, config.num_steps, *counts, setting.model_config, config, overlap, settings)


def _advance(
    setting: _Setting, weights: Weights, first: int, stop: int, recorder: RunRecorder
) -> tuple[Weights, float]:
    """Take the steps `first` to `stop` and record them; return the new weights and the loss of the last step."""
    config, context_length = setting.config, setting.model_config.context_length
    shape = (stop - first, config.gradient_accumulation, config.batch_size)
    tokens = corpus.sample_batches(setting.texts.training, setting.seed, first, shape, context_length)
    keys = optimization.sample_dropout_keys(config, key_from_seed(setting.seed), first, stop - first)
    weights, info = optimization.take_steps(
        setting.model_config, config, weights, tokens, keys=keys, base=setting.base, num_shards=setting.num_shards
    )
    info = jax.device_get(info)
    if not np.isfinite(info["loss"]).any():
        raise _divergence(setting.folder, f"its loss is not finite in steps {first + 1} to {stop}")
    recorder.append(_step_records(first, setting.tokens_per_step, info))
    return weights, float(info["loss"][-1])


def _score(setting: _Setting, content: Any, progress: _Progress, recorder: RunRecorder) -> _Progress:
    """Score the held-out text, record its loss, and save the weights if the loss is the lowest so far."""
    weights, step = setting.full_weights(content), progress.step
    held_out_loss = _finite(_evaluate(setting, weights))
    tokens = {"step": step, "num_tokens": step * setting.tokens_per_step}
    recorder.append([tokens | {"held_out_loss": held_out_loss}])
    best_loss = progress.best_loss
    if held_out_loss is not None and (best_loss is None or held_out_loss < best_loss):
        best_loss = held_out_loss
        checkpoint.save(setting.folder, models.BEST, weights, {"step": step, "held_out_loss": best_loss})
    return _Progress(step, held_out_loss, best_loss)


def _finish(setting: _Setting, weights: TransformerWeights, progress: _Progress, recorder: RunRecorder) -> None:
    """Save the last weights of a training; raises `BadInput` where it diverged."""
    if not trees.is_finite(weights):
        raise _divergence(setting.folder, "its weights are not finite")
    if progress.held_out_loss is None:
        raise _divergence(setting.folder, "its loss on the held-out text is not finite")
    summary = {"num_steps": progress.step, "num_tokens": progress.step * setting.tokens_per_step}
    recorder.finish(models.WEIGHTS, weights, summary | {"held_out_loss": progress.held_out_loss})


def _divergence(folder: Path, reason: str) -> BadInput:
    """The error of a training that diverged."""
    return BadInput(f"the training in '{folder}' diverged: {reason}; use a lower --learning-rate in a new folder")


def _step_records(first: int, tokens_per_step: int, info: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One record for each step of a compiled call."""
    return [
        {"step": step, "num_tokens": step * tokens_per_step}
        | {name: _finite(values[index]) for name, values in info.items()}
        for index, step in enumerate(range(first + 1, first + 1 + len(info["loss"])))
    ]


def _evaluate(setting: _Setting, weights: TransformerWeights) -> float:
    """The mean loss, in nats per token, of windows spread evenly over the held-out text."""
    model_config, batch_size = setting.model_config, setting.config.batch_size
    windows = corpus.spaced_windows(setting.texts.held_out, model_config.context_length, MAX_EVALUATION_WINDOWS)
    losses = []
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        padding = np.repeat(batch[:1], batch_size - len(batch), axis=0)
        padded = np.concatenate([batch, padding])
        batch_losses = optimization.window_losses(
            model_config, setting.config.precision, weights, padded, num_shards=setting.num_shards
        )
        losses.append(np.asarray(batch_losses)[: len(batch)])
    return float(np.concatenate(losses).mean(dtype=np.float64))


_full_weights = jax.jit(optimization.full_weights, static_argnums=0)


def _finite(value: float) -> float | None:
    """A JSON number; None where the value is not finite."""
    return float(value) if math.isfinite(value) else None
