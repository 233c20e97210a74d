"""`ontogeny lm`: train, evaluate, run and export language models."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli import shared
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.errors import BadInput
from ontogeny.lm.config import TrainConfig
from ontogeny.report.formatting import pluralize

if TYPE_CHECKING:
    from ontogeny.engine.generate import Completion
    from ontogeny.lm.evaluation import TextEvaluation
    from ontogeny.lm.model import LanguageModel
    from ontogeny.lm.tokenizer import Tokenizer
    from ontogeny.lm.training import TrainProgress, TrainStart
    from ontogeny.stats import RatioEstimate

SAMPLE_TOKENS = 60  # of a sample during training

Best = Annotated[
    bool, typer.Option("--best", help="Use the weights of the lowest held-out loss of a run instead of the last ones.")
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="TYPE",
        help="Type in which matrices are kept in memory: that of the file (auto), float32, bfloat16, float16 or int8; "
        "all but auto and float32 need the extra `fast`.",
    ),
]
Model = Annotated[Path, typer.Argument(help="Folder of a language-model run, or a folder of Hugging Face.")]


@shared.options_from(TrainConfig)
def train(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Texts in UTF-8; each is one document.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    checkpoint_interval: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds between checkpoints.")] = 10.0,
    from_folder: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Fine-tune the model in this folder (a run, or a folder of Hugging Face): its weights, shape and "
            "tokenizer instead of random weights.",
        ),
    ] = None,
    lengthen: Annotated[
        bool, typer.Option("--lengthen", help="Continue the finished run in --out to a larger --num-steps.")
    ] = False,
    sample_prompt: Annotated[
        str | None, typer.Option(help="Print a continuation of this text each time the held-out text is scored.")
    ] = None,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
    **settings: Any,
) -> None:
    """Train a language model on text; writes weights, tokenizer, records and a page with the loss.

    Rerun the same command to resume a training that was interrupted.

    Example: ontogeny lm train mine.txt --size nano --out runs/mine
    """
    _check_utf8(*([] if sample_prompt is None else [sample_prompt]))
    configure_jax(device, num_host_devices, one_thread=settings["optimizer"] == "adamw")
    from ontogeny.lm.page import write_page
    from ontogeny.lm.training import train
    from ontogeny.runs import checkpoint

    with contextlib.ExitStack() as stack:
        display = _TrainDisplay(stack, out, sample_prompt)
        train(
            settings,
            files,
            out,
            initial=None if from_folder is None else _load(from_folder),
            lengthen=lengthen,
            on_progress=display.on_progress,
            on_start=display.on_start,
            on_evaluation=display.on_evaluation,
            check_tokenizer=display.check_prompt,
            checkpoint_interval=checkpoint_interval,
        )
    summary = checkpoint.read_metadata(out, "weights")
    typer.echo(
        f"{out}: {pluralize(summary['num_parameters'], 'parameter')} after "
        f"{pluralize(summary['num_steps'], 'step')} and {summary['num_tokens']:,} tokens, held-out loss "
        f"{shared.format_number(summary['held_out_loss'])} nats per token, weights digest {summary['digest'][:16]}"
    )
    typer.echo(f"wrote {write_page(out)}")


class _TrainDisplay:
    """Prints the progress of a training, samples from it, and updates the page of its run."""

    def __init__(self, stack: contextlib.ExitStack, out: Path, sample_prompt: str | None) -> None:
        self._stack, self._out, self._sample_prompt = stack, out, sample_prompt
        self._update: shared.UpdateProgress | None = None
        self._first_step, self._created_at = 0, time.perf_counter()
        # Nothing is known of the progress before the first step.
        self._reading = stack.enter_context(contextlib.ExitStack())
        self._reading.enter_context(shared.progress("reading and tokenizing", "bytes"))

    def check_prompt(self, tokenizer: "Tokenizer", context_length: int) -> None:
        """Raise `BadInput` where the prompt leaves no space for a sample."""
        num_tokens = len(tokenizer.encode(self._sample_prompt or ""))
        if num_tokens >= context_length - 1:
            raise BadInput(
                f"--sample-prompt has {num_tokens:,} tokens, which leaves no space in the model's context of "
                f"{context_length}"
            )

    def on_start(self, start: "TrainStart") -> None:
        """Print the settings and whether the run is resumed; only from now on the rate counts."""
        self._reading.close()
        model, all_trained = start.model, start.num_trained == start.num_parameters
        trained = "" if all_trained else f" (adapters of {start.num_trained:,} are trained)"
        shared.print_note(
            f"{pluralize(start.num_parameters, 'parameter')}{trained}, {pluralize(model.num_layers, 'layer')}, "
            f"{pluralize(model.num_heads, 'head')}, width {model.width}, context {model.context_length}, vocabulary "
            f"{model.vocab_size}; {start.num_tokens[0]:,} training tokens, {start.num_tokens[1]:,} held-out tokens, "
            f"read in {time.perf_counter() - self._created_at:.1f} s"
        )
        shared.print_note("settings: " + ", ".join(f"{name}={start.settings[name]}" for name in start.settings))
        if start.overlap:
            shared.print_note(
                f"{start.overlap:.1%} of the 13-grams of words of the held-out files are in the files that are trained "
                "on, so the held-out loss is too low"
            )
        if start.step:
            shared.print_note(f"the run in '{self._out}' is resumed after step {start.step:,} of {start.num_steps:,}")
        self._first_step = start.step
        self._update = self._stack.enter_context(shared.progress("training", "tokens"))

    def on_progress(self, state: "TrainProgress") -> None:
        """Update the progress by the tokens of this call."""
        assert self._update is not None
        held_out = "" if state.held_out_loss is None else f", held-out loss {state.held_out_loss:.3f}"
        text = f"step {state.step:,} of {state.num_steps:,}, loss {state.loss:.3f}{held_out}"
        num_tokens = [(step - self._first_step) * state.tokens_per_step for step in (state.step, state.num_steps)]
        self._update(num_tokens[0], num_tokens[1], text)

    def on_evaluation(self, state: "TrainProgress", model: "LanguageModel") -> None:
        """Update the page, and print a sample where one was requested."""
        from ontogeny.engine.generate import generate
        from ontogeny.engine.sampling import SamplingParams
        from ontogeny.lm.page import write_page

        write_page(self._out)
        if self._sample_prompt is not None:
            params = SamplingParams(0.8, seed=state.step)
            sample = generate(model, [self._sample_prompt], max_tokens=SAMPLE_TOKENS, sampling_params=params)[0]
            lines = (self._sample_prompt + sample.text).splitlines()
            text = "\n".join(map(shared.to_printable, lines))
            typer.echo(f"--- sample after step {state.step:,}\n{text}", err=True)


def _check_utf8(*arguments: str) -> None:
    """Raise `BadInput` where the bytes of an argument were not text in UTF-8."""
    for argument in arguments:
        if not argument.isprintable() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise BadInput(f"'{shared.to_printable(argument)}' is not text in UTF-8")


def _load(run: Path, best: bool = False, weights: str | None = None) -> "LanguageModel":
    """Load a model for a command, and say where its run is not finished."""
    from ontogeny.lm.model import load, read_checkpoint_step

    model = load(run, best=best, allow_unfinished=True, weights=weights)
    if not best and (steps := read_checkpoint_step(run)) is not None:
        shared.print_note(
            f"the run in '{run}' is not finished: its weights are those after step {steps[0]} of {steps[1]}"
        )
    return model


def generate(
    run: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; repeat for several.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of one completion.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 takes the most probable token each time.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Number of most probable tokens to sample from; 0 for all of them.")] = 0,
    top_p: Annotated[float, typer.Option(help="Probability of the set of most probable tokens to sample from.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="String before which a completion ends; repeat for several.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of completions of each prompt.")] = 1,
    best: Best = False,
    weights: Weights = "auto",
    seed: shared.Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per completion.")] = False,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
) -> None:
    """Continue a text; the same command prints the same text.

    Example: ontogeny lm generate runs/mine --prompt 'Once upon' --max-tokens 200 --temperature 0.8
    """
    configure_jax(device, num_host_devices)
    from ontogeny.engine.generate import encode_prompt, generate
    from ontogeny.engine.sampling import SamplingParams, check_sampling_params

    model, params = _load(run, best, weights), SamplingParams(temperature, top_p, seed, top_k)
    prompts = prompt or [""]
    _check_utf8(*prompts, *(stop or ()))
    is_single = len(prompts) * n == 1 and not as_json
    if is_single:
        encode_prompt(model, prompts[0])  # an error is reported before anything is printed
        check_sampling_params(params)
        typer.echo(prompts[0], nl=False)
    completions = generate(
        model,
        prompts,
        max_tokens=max_tokens,
        sampling_params=params,
        stop=stop or (),
        n=n,
        on_text=(lambda _, text: typer.echo(text, nl=False)) if is_single else None,
    )
    if is_single:
        typer.echo()
        return
    for number, completion in enumerate(completions):
        if as_json:
            record = _completion_record(completion, prompts[number // n], seed, number % n)
            typer.echo(json.dumps(record, allow_nan=False))
        else:
            title = f"--- prompt {number // n + 1}, completion {number % n + 1}"
            typer.echo(f"{title}\n{prompts[number // n]}{completion.text}")


def export(
    run: Model,
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    best: Best = False,
) -> None:
    """Write a language model as a folder that the transformers library of Hugging Face loads.

    Example: ontogeny lm export runs/mine --out folder-for-transformers
    """
    shared.check_new_path(out)
    configure_jax(None)
    from ontogeny.lm import hugging_face

    model = _load(run, best)
    typer.echo(f"wrote {hugging_face.write_folder(out, *model[:3], model.chat_template)}")


def evaluate(
    run: Model,
    text: Annotated[Path | None, typer.Option(help="Text to score; by default the text that the run held out.")] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Let the weights learn from each chunk of the text after it is scored.")
    ] = False,
    learning: Annotated[
        str | None,
        typer.Option(
            help="Settings of online learning, setting=value,...: chunk_size, optimizer, learning_rate, decay_rate, "
            "fisher_decay, rehearsal_batch_size, rehearsal_weight, adapter_rank, max_gradient_norm; requires --online."
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="With --online, mix the network with a memory of the text."),
    ] = True,
    stride: Annotated[
        int | None, typer.Option(help="Number of tokens scored per window; by default half of the context length.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Number of windows computed together; by default as many as fit into 128 MiB.")
    ] = None,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Score a text although parts of it are in the training text.")
    ] = False,
    best: Best = False,
    weights: Weights = "auto",
    seed: shared.Seed = 0,
    as_json: shared.JsonOutput = False,
    out: shared.JsonFile = None,
    device: shared.Device = None,
    num_host_devices: shared.NumHostDevices = None,
) -> None:
    """Score a language model on held-out text, with 95 % intervals.

    Examples: ontogeny lm evaluate runs/mine; ontogeny lm evaluate runs/mine --text other.txt --online
    """
    shared.check_new_path(out)
    configure_jax(device, num_host_devices)
    if learning is not None and not online:
        raise BadInput("--learning sets how weights learn online; it requires --online")
    if not memory and not online:
        raise BadInput("--no-memory leaves out the memory that --online mixes with the network; it requires --online")
    if online and weights not in ("auto", "float32"):
        raise BadInput(f"weights that learn are kept in float32, so --online excludes --weights {weights}")
    if online and stride is not None:
        raise BadInput("--stride is for frozen weights; with --online use --learning chunk_size=32")
    if online and batch_size is not None:
        raise BadInput("--batch-size is for frozen weights; --online reads one chunk after another")
    if online and text is None:
        raise BadInput("--online requires a --text")
    model = _load(run, best, None if online else weights)
    if online and text is not None:
        record = _evaluate_online(model, text, learning or "", memory, allow_overlap, seed)
        rows = _online_rows(record)
    else:
        from ontogeny.lm.evaluation import as_record

        evaluation = _evaluate_frozen(model, text, stride, batch_size, allow_overlap)
        record = {"text": None if text is None else text.name} | as_record(evaluation)
        rows = _evaluation_rows(evaluation, text)
    shared.output_report({"model": str(run)} | record, {"model": str(run)} | rows, out, as_json=as_json)


def _completion_record(completion: "Completion", prompt: str, seed: int, index: int) -> dict[str, Any]:
    """The JSON record of a generated text."""
    record = {"prompt": prompt, "text": completion.text, "tokens": list(completion.tokens)}
    return record | {"finish_reason": completion.finish_reason, "seed": seed, "index": index}


def _evaluate_frozen(
    model: "LanguageModel", text: Path | None, stride: int | None, batch_size: int | None, allow_overlap: bool
) -> "TextEvaluation":
    """The scores of a text, or of the text that the run held out."""
    from ontogeny.lm.evaluation import evaluate, evaluate_held_out, read_text

    content = None if text is None else read_text(text)
    with shared.progress("evaluating", "tokens") as update:
        if content is None:
            return evaluate_held_out(model, stride=stride, batch_size=batch_size, on_progress=update)
        evaluation = evaluate(
            model, content, stride=stride, batch_size=batch_size, allow_overlap=allow_overlap, on_progress=update
        )
    if evaluation.overlap is None:
        shared.print_note(
            "the training text of this model is unknown, so the overlap of the text with it was not checked"
        )
    return evaluation


def _evaluate_online(
    model: "LanguageModel", text: Path, learning: str, use_memory: bool, allow_overlap: bool, seed: int
) -> dict[str, Any]:
    """The record of an online evaluation: losses by condition, their attribution, and forgetting."""
    from ontogeny.audit.attribution import divide_gain
    from ontogeny.lm import online, online_learner
    from ontogeny.lm.evaluation import check_overlap, read_text

    config = online_learner.parse_config(learning, online.EVALUATION_DEFAULTS)
    content = read_text(text)
    check_overlap(model, content, allow_overlap=allow_overlap)
    tokens = model.tokenizer.encode(content)
    with shared.progress("evaluating in four conditions", "tokens") as update:
        evaluation = online.evaluate_online(model, tokens, config, seed=seed, use_memory=use_memory, on_progress=update)
    gain = divide_gain(-online.segment_means(evaluation, online.SEGMENT_TOKENS))
    parts = {"weights": gain.gain_of_weights, "activations": gain.gain_of_activations, "interaction": gain.interaction}
    attribution = {name: part._asdict() for name, part in parts.items()}
    attribution |= {"verdict": gain.verdict, "summary": gain.summary}
    record = online.as_record(model, evaluation, tokens, config, len(content.encode()))
    return record | {"text": text.name, "seed": seed, "attribution": attribution}


def _online_rows(record: dict[str, Any]) -> dict[str, str]:
    """The most important values of an online evaluation by label, as text."""

    def interval(estimate: dict[str, Any]) -> str:
        return _format_interval(*(estimate[key] for key in ("mean", "low", "high")))

    rows = {
        f"bits per byte, {name.replace('_', ' ')}": interval(estimate)
        for name, estimate in record["bits_per_byte"].items()
    }
    rows["share of the frozen bits saved online"] = interval(record["bits_saved"])
    for name in ("weights", "activations", "interaction"):
        rows[f"gain in nats per token, {name}"] = interval(record["attribution"][name])
    rows["verdict"] = "{verdict}: {summary}".format_map(record["attribution"])
    if record["forgetting"] is not None:
        rows["forgetting on the held-out text, nats per token"] = interval(record["forgetting"])
    if (mixture := record["mixture"]) is not None:
        rows["weights of the mixture"] = ", ".join(f"{k} {v:.3f}" for k, v in mixture["mean_weights"].items())
        if mixture["forgetting"] is not None:
            rows["forgetting of the mixture, nats per token"] = interval(mixture["forgetting"])
    rows["relative weight change"] = f"{record['relative_weight_change']:.2%}"
    return rows


def _evaluation_rows(evaluation: "TextEvaluation", text: Path | None) -> dict[str, str]:
    """The most important values of an evaluation by label, as text."""

    def interval(estimate: "RatioEstimate") -> str:
        return _format_interval(*estimate)

    segments = f"over {pluralize(evaluation.num_segments, 'segment')} of {evaluation.segment_size} tokens"
    rows = {
        "text": "held out by its run" if text is None else str(text),
        "perplexity": f"{interval(evaluation.perplexity)} per token",
        "bits per byte": interval(evaluation.bits_per_byte),
        "scored": f"{evaluation.num_tokens:,} tokens, {evaluation.num_bytes:,} bytes",
        "window": f"{evaluation.context_length} tokens, stride {evaluation.stride}",
        "interval": segments,
    }
    if evaluation.num_unscored_bytes:
        rows["not scored"] = f"{evaluation.num_unscored_bytes:,} bytes of the text, which no scored token encodes"
    if (overlap := evaluation.overlap) is not None:
        ngrams = f"{overlap.num_ngrams:,} {overlap.ngram_size}-grams of words"
        rows["overlap"] = f"{overlap.fraction:.2%} of {ngrams} are in the training text"
    return rows


def _format_interval(mean: float, low: float, high: float) -> str:
    """A mean with its 95 % interval, if it has one."""
    if math.isnan(low):
        return f"{mean:.4f} (one segment: no interval)"
    return f"{mean:.4f}   95 % interval {low:.4f} to {high:.4f}"
