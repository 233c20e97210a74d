"""The commands of a language model: train text, evaluate with a text, generate, export."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.jax_setup import configure_jax
from ontogeny.cli.shared import Device, Seed, check_new_path, format_count, format_number, print_note, progress
from ontogeny.errors import BadInput

if TYPE_CHECKING:
    from ontogeny.lm.evaluate import Evaluation, Score


def train(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Texts in UTF-8; each is one document.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that is unfinished is resumed.")],
    size: Annotated[str, typer.Option(help="pico, nano, micro, small, medium or large; the rest follows.")] = "nano",
    architecture: Annotated[str, typer.Option(help="gpt2, or modern: rotary, RMSNorm, SwiGLU, no biases.")] = "gpt2",
    tokenizer: Annotated[str, typer.Option(help="bytes, characters or bpe.")] = "bpe",
    vocabulary: Annotated[int, typer.Option(help="Tokens of BPE.")] = 1024,
    held_out: Annotated[float, typer.Option(help="Share of the text that is not trained on.")] = 0.1,
    split: Annotated[str, typer.Option(help="Hold out the tail of each file, or whole files: tail or document.")] = (
        "tail"
    ),
    layers: Annotated[int | None, typer.Option(help="In place of the size's.")] = None,
    heads: Annotated[int | None, typer.Option(help="In place of the size's.")] = None,
    width: Annotated[int | None, typer.Option(help="In place of the size's.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that it looks back on; in place of the size's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in one product; in place of the size's.")] = None,
    accumulate: Annotated[int, typer.Option(help="Such products in one step.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="By default 20 tokens per weight, at most 8 times the text.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    learning_rate: Annotated[float | None, typer.Option(help="At its highest; in place of the size's.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which it rises.")] = 0.05,
    decay: Annotated[str, typer.Option(help="How it falls to a tenth: cosine or linear.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.1,
    clip: Annotated[float, typer.Option(help="The most that a gradient's norm may be.")] = 1.0,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto: by the device.")] = "auto",
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between checkpoints.")] = 10.0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train a language model on text; leaves weights, tokenizer, records and a page with the loss.

    Example: ontogeny lm train mine.txt --size nano --out runs/mine
    """
    given = {key: value for key, value in locals().items() if key not in ("files", "out", "every", "device")}
    configure_jax(device, one_thread=optimizer == "adamw")
    from ontogeny.lm import page
    from ontogeny.lm.train import Moment, TrainConfig, train
    from ontogeny.runs import checkpoint

    with progress("training", "tokens") as update:

        def on_progress(at: Moment) -> None:
            held = "" if at.held_out is None else f", held out {at.held_out:.3f}"
            told = f"step {at.step:,} of {at.steps:,}, loss {at.loss:.3f}{held}"
            update(at.step * at.tokens, at.steps * at.tokens, told)

        train(TrainConfig(**given), files, out, on_progress=on_progress, every=every)
    made = checkpoint.read_metadata(out, "weights")
    typer.echo(
        f"{out}: {format_count(made['num_parameters'], 'weight')} after {format_count(made['step'], 'step')} and {made['tokens']:,} tokens, "
        f"held-out loss {format_number(made['held_out'])} nats per token, weights digest {made['digest'][:16]}"
    )
    typer.echo(f"wrote {page.write(out)}")


def generate(
    run: Annotated[Path, typer.Argument(help="A run of `train text`, or a GPT-2 folder of Hugging Face.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; may be given several times.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of one continuation.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only so many of the most probable tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the most probable tokens that together have this much.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Continuations of each prompt.")] = 1,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines, one per continuation.")] = False,
    device: Device = None,
) -> None:
    """Continue a text; the same command gives the same text.

    Example: ontogeny lm generate runs/mine --prompt 'Once upon' --max-tokens 200 --temperature 0.8
    """
    configure_jax(device)
    from ontogeny.engine import generate as language
    from ontogeny.engine.sampling import SamplingParams, check_sampling_params
    from ontogeny.lm.model import load

    model, params = load(run), SamplingParams(temperature, top_p, seed, top_k)
    prompts = prompt or [""]
    alone = len(prompts) * n == 1 and not as_json
    if alone:
        language.encode_prompt(model, prompts[0])  # errors are reported before anything is printed
        check_sampling_params(params)
        typer.echo(prompts[0], nl=False)
    found = language.generate(
        model,
        prompts,
        max_tokens=max_tokens,
        sampling_params=params,
        stop=stop or (),
        n=n,
        on_text=(lambda _, text: typer.echo(text, nl=False)) if alone else None,
    )
    if alone:
        typer.echo()
        return
    for number, each in enumerate(found):
        of = prompts[number // n]
        if as_json:
            record = {"prompt": of, "text": each.text, "tokens": list(each.tokens), "finish_reason": each.finish_reason}
            typer.echo(json.dumps(record | {"seed": seed, "index": number % n}))
        else:
            typer.echo(f"--- prompt {number // n + 1}, continuation {number % n + 1}\n{of}{each.text}")


def export(
    run: Annotated[Path, typer.Argument(help="A finished run of `train text` with --architecture gpt2.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write a language model as a GPT-2 folder that Hugging Face's transformers loads.

    Example: ontogeny lm export runs/mine --out folder-for-transformers
    """
    check_new_path(out)
    configure_jax(None)
    from ontogeny.lm import hugging_face
    from ontogeny.lm.model import load

    model = load(run)
    typer.echo(f"wrote {hugging_face.write(out, model.config, model.weights, model.tokenizer)}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Language-model run, or a GPT-2 folder of Hugging Face.")],
    text: Annotated[Path | None, typer.Option(help="Text to score; by default what the run held out.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Let the weights learn while the text is read.")] = False,
    learning: Annotated[str | None, typer.Option(help="With --online: setting=value,... of online learning.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens scored per window; by default half of the context.")
    ] = None,
    despite_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Score a text although the training text holds parts of it.")
    ] = False,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="New file for the JSON.")] = None,
    device: Device = None,
) -> None:
    """Score a language model on held-out text, with 95 % intervals.

    Examples: ontogeny lm evaluate runs/mine; ontogeny lm evaluate runs/mine --text other.txt --online
    """
    check_new_path(out)
    configure_jax(device)
    if learning is not None and not online:
        raise BadInput("--learning says how weights change: it goes with --online")
    if online:
        return _read_online(run, text, learning or "", stride, despite_overlap, seed, as_json, out)
    from ontogeny.lm import evaluate as language
    from ontogeny.lm.model import load
    from ontogeny.runs.files import write_json

    model = load(run)
    content = None if text is None else language.read_text(text)
    with progress("evaluating", "tokens") as update:

        def on_progress(done: int, total: int) -> None:
            update(done, total, f"{done:,} of {total:,} tokens")

        if content is None:
            found = language.evaluate_held_out(model, stride=stride, on_progress=on_progress)
        else:
            found = language.evaluate(
                model, content, stride=stride, despite_overlap=despite_overlap, on_progress=on_progress
            )
    if content is not None and found.overlap is None:
        print_note("what this model was trained on is not known here, so whether the text overlaps it cannot be said")
    record = {"model": str(run), "text": None if text is None else text.name} | language.as_record(found)
    if out is not None:
        write_json(out, record)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        _print(run, text, found)


def _read_online(
    run: Path,
    text: Path | None,
    learning: str,
    stride: int | None,
    despite_overlap: bool,
    seed: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """The four cells, their split, and what became of the original text."""
    from ontogeny.audit import attribution
    from ontogeny.lm import evaluate, online, online_learner
    from ontogeny.lm.model import load
    from ontogeny.runs.files import write_json

    if text is None:
        raise BadInput("--online reads a --text, and scores what the run held out before and after")
    if stride is not None:
        raise BadInput("--stride is for scoring frozen; --online reads in blocks: --learning chunk_size=32")
    plan = online_learner.parse_config(learning)
    model = load(run)
    content = evaluate.read_text(text)
    evaluate.refuse_overlap(model, content, despite_overlap=despite_overlap)
    tokens = model.tokenizer.encode(content)
    with progress("reading", "tokens") as update:
        found = online.evaluate_online(
            model, tokens, plan, seed=seed, on_progress=lambda done, total: update(done, total, f"{done:,}")
        )
    split = attribution.divide_gain(-online.by_block(found, online.LONG))
    record = online.as_record(model, found, tokens, plan) | {
        "model": str(run),
        "text": text.name,
        "seed": seed,
        "split_of_nats_per_token": {
            "weights": split.gain_of_weights._asdict(),
            "activations": split.gain_of_activations._asdict(),
            "interaction": split.interaction._asdict(),
            "verdict": split.verdict,
        },
    }
    if out is not None:
        write_json(out, record)
    if as_json:
        typer.echo(json.dumps(record))
    else:
        _print_reading(record)


def _print_reading(record: dict[str, Any]) -> None:
    def told(part: dict[str, Any], digits: int = 4) -> str:
        mean, low, high = (part[key] for key in ("mean", "low", "high"))
        return f"{mean:.{digits}f}   95 % interval {low:.{digits}f} to {high:.{digits}f}"

    rows = {f"bits per byte, {name.replace('_', ', ')}": told(part) for name, part in record["bits_per_byte"].items()}
    rows["saved online of the frozen bits"] = told(record["saved"])
    for name in ("weights", "activations", "interaction"):
        rows[f"nats per token by {name}"] = told(record["split_of_nats_per_token"][name])
    rows["carried by"] = record["split_of_nats_per_token"]["verdict"]
    if record["forgotten"] is not None:
        rows["nats per token lost on the original held-out text"] = told(record["forgotten"])
    rows["weights moved by"] = f"{record['relative_weight_change']:.2%} of their norm"
    for name, value in rows.items():
        typer.echo(f"  {name:<51}{value}")


def _print(run: Path, text: Path | None, found: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    rows = [
        ("model", str(run)),
        ("text", "held out by its run" if text is None else str(text)),
        ("perplexity", f"{_interval(found.perplexity)} per token"),
        ("bits per byte", _interval(found.bits_per_byte)),
        ("scored", f"{found.tokens:,} tokens, {found.bytes:,} bytes"),
        ("window", f"{found.context} tokens, stride {found.stride}"),
        ("interval", f"over {format_count(found.blocks, 'block')} of {found.block} tokens"),
    ]
    if found.overlap is not None:
        shared = found.overlap
        rows.append(
            ("overlap", f"{shared.share:.2%} of {shared.runs:,} runs of {shared.words} words are in the training text")
        )
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def _interval(score: "Score") -> str:
    if math.isnan(score.low):
        return f"{score.mean:.4f} (one block: no interval)"
    return f"{score.mean:.4f}   95 % interval {score.low:.4f} to {score.high:.4f}"
