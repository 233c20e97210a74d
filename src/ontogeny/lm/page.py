"""The page of a language-model run: its loss by step, model, corpus and speed, from the records of the run.

The page needs no other file, no network and no script; the same records give the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ontogeny.lm import corpus, lengthening, optimization, training
from ontogeny.lm import model as models
from ontogeny.lm.optimization import OptimizerConfig
from ontogeny.report import charts, page
from ontogeny.report.formatting import format_count
from ontogeny.runs.files import read_json, write_bytes
from ontogeny.runs.folder import RunDescription
from ontogeny.runs.formats import RECORDS_FILE
from ontogeny.runs.records import read_records, read_timings

PAGE_FILE = "report.html"
MAX_POINTS = 300  # of a line; more cannot be distinguished

LossCurve = list[tuple[int, float]]  # step, nats per token


def write_page(folder: Path | str) -> Path:
    """Write `report.html` into the folder of a run and return its path.

    Raises:
        BadInput: The folder holds no language-model run, or damaged records.
    """
    folder = Path(folder)
    write_bytes(folder / PAGE_FILE, render_page(folder).encode())
    return folder / PAGE_FILE


def render_page(folder: Path) -> str:
    """Render the whole page of a run."""
    description = models.read_description(folder)
    metadata = read_json(folder / corpus.FILE)
    records = read_records(folder / RECORDS_FILE)
    losses = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    held_out = [(r["step"], r["held_out_loss"]) for r in records if r.get("held_out_loss") is not None]
    seconds = [timing["seconds"] for timing in read_timings(folder)]
    opening = page.render(__package__ or "", "training.html.j2", chart=_draw_losses(losses, held_out) if losses else "")
    bytes_per_token = metadata["num_bytes"]["held_out"] / metadata["num_tokens"]["held_out"]
    stages, config = lengthening.read_stages(folder), lengthening.read_optimization(folder, description)
    rows = _summarize_losses(losses, held_out, bytes_per_token)
    rows += _describe(description, config, metadata, losses, seconds)
    if stages:
        steps = ", ".join(f"after step {stage['first_step']:,} to {stage['num_steps']:,} steps" for stage in stages)
        rows.append(("lengthened", steps))
    summary = page.Section("run", "The run", page.table("Model, training and text", ("", "value"), rows))
    names = ", ".join(file["name"] for file in description.spec["files"])
    return page.document(f"A language model trained on {names}", opening, [summary], "language-model run")


def _summarize_losses(losses: LossCurve, held_out: LossCurve, bytes_per_token: float) -> list[tuple[str, str]]:
    """The row of the held-out loss, or no row before it was measured."""
    if not held_out:
        return []
    best = min(held_out, key=lambda point: point[1])
    bits = [loss / math.log(2) / bytes_per_token for loss in (held_out[-1][1], best[1])]
    return [
        ("held-out loss", f"{held_out[-1][1]:.4f} nats per token; lowest {best[1]:.4f} at step {best[0]:,}"),
        ("held-out bits per byte", f"{bits[0]:.4f}; lowest {bits[1]:.4f}"),
    ]


def _describe(
    description: RunDescription,
    config: OptimizerConfig,
    metadata: Mapping[str, Any],
    losses: LossCurve,
    seconds: Sequence[float],
) -> list[tuple[str, str]]:
    """The rows of the table of model, training and text."""
    spec, model, optimizer = description.spec, description.details["model"], config.model_dump()
    tokens_per_step = optimizer["batch_size"] * optimizer["gradient_accumulation"] * model["context_length"]
    num_steps = losses[-1][0] if losses else 0
    architecture = "fine-tuned" if "initial" in spec else spec["architecture"]
    schedule = optimization.make_schedule(config)

    def size(part: str) -> str:
        return f"{metadata['num_tokens'][part]:,} tokens, {metadata['num_bytes'][part]:,} bytes"

    rows = [
        ("parameters", format_count(description.details["num_parameters"])),
        (
            "model",
            f"{architecture}: {model['num_layers']} layers, {model['num_heads']} heads, width "
            f"{model['width']}, context {model['context_length']}, {model['vocab_size']} tokens ({spec['tokenizer']})",
        ),
        ("steps", f"{num_steps:,} of {optimizer['num_steps']:,}, {tokens_per_step:,} tokens each"),
        ("optimizer", ", ".join(f"{name} {value}" for name, value in optimizer.items() if name != "num_steps")),
        ("learning rate", f"{np.asarray(schedule(max(num_steps - 1, 0))).item():.3g} in the last step"),
        ("training text", size("training")),
        ("held-out text", f"{size('held_out')}, split by {spec['split']}"),
        ("seed", str(spec["seed"])),
    ]
    if len(seconds) > 2:
        speed = training.STEPS_PER_CALL * tokens_per_step / float(np.median(seconds[1:]))
        rows.append(("throughput", f"{speed:,.0f} tokens/s (median), {math.ceil(sum(seconds)):,} s in all"))
    return rows


def _draw_losses(losses: LossCurve, held_out: LossCurve) -> Markup:
    """The figure of both losses; the training loss is averaged over groups of steps."""
    steps, values = (np.array(column, float) for column in zip(*losses, strict=True))
    steps_per_point = -(-len(steps) // MAX_POINTS)
    starts = np.arange(0, len(steps), steps_per_point)
    counts = np.diff(starts, append=len(steps))
    mean_steps, mean_losses = np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts
    with charts.new_panel(7.2, 3.6) as (figure, axes):
        axes.plot(mean_steps, mean_losses, color=charts.EVOLUTION, lw=1.2)
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=charts.ML_CODE, ms=3, lw=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        label = f"Loss from {values[0]:.3f} to {values[-1]:.3f} nats per token in {int(steps[-1]):,} steps"
        return charts.inline_svg(figure, "loss", label)
