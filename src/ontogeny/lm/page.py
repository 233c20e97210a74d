"""The page of a run: its loss by step as an inline SVG, what was trained, on what, and how fast; from its records.

Reads what the run has written and nothing else. The page needs no other file, no network and no script; the same
records give the same bytes.
"""

import io
import json
import math
import re
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ontogeny.lm import corpus, train
from ontogeny.lm import model as models
from ontogeny.runs.files import read_json, write_bytes

PAGE = "report.html"
POINTS = 300  # of a line: more cannot be seen
TRAINING, HELD_OUT, INK, RULE = "#0a66b5", "#b8500c", "#5f646d", "#9a9fa7"
STYLE = """:root { color-scheme: light dark; --paper: #fdfcfa; --ink: #1d1f24; --muted: #5f646d; --rule: #e2dfd8; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e6e4df; --muted: #9a9fa7; --rule: #33363c; } }
body { max-width: 46rem; margin: 2.5rem auto; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--muted); font-weight: 400; width: 12rem; }
svg { width: 100%; height: auto; } p { color: var(--muted); } td { overflow-wrap: anywhere; }"""


def write(folder: Path | str) -> Path:
    """Writes `report.html` into the folder of a run and returns its path; bad records raise `BadInput`."""
    folder = Path(folder)
    write_bytes(folder / PAGE, render(folder).encode())
    return folder / PAGE


def render(folder: Path) -> str:
    """The whole page as text."""
    spec, texts = models.read_spec(folder), read_json(folder / corpus.FILE)
    records = train.read_records(folder)
    trained = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    held_out = [(r["step"], r["held_out"]) for r in records if r.get("held_out") is not None]
    rows = _rows(folder, spec, texts, trained, held_out)
    body = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    title = f"A language model on {', '.join(file['name'] for file in spec['run']['files'])}"
    chart = _chart(trained, held_out) if trained else "<p>No step has been taken yet.</p>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{chart}\n<p>Blue: the loss of each step's own windows, a mean over "
        "neighbouring steps. Orange: windows spread over the held-out text, which no step has seen.</p>\n"
        f"<table>{body}</table></body></html>\n"
    )


def _rows(
    folder: Path, spec: dict[str, Any], texts: dict[str, Any], trained: list[Any], held_out: list[Any]
) -> list[tuple[str, str]]:
    how, config, run = spec["recipe"], spec["config"], spec["run"]
    seconds = [json.loads(line)["seconds"] for line in _lines(folder / train.TIMING)]
    per_step = how["batch"] * how["accumulate"] * config["context_length"]
    done = trained[-1][0] if trained else 0
    rows = [
        ("weights", f"{spec['numbers']:,}"),
        (
            "model",
            f"{run['architecture']}: {config['num_layers']} layers, {config['num_heads']} heads, {config['width']} wide, "
            f"context {config['context_length']}, {config['vocab_size']} tokens ({run['tokenizer']})",
        ),
        ("steps", f"{done:,} of {how['steps']:,}, {per_step:,} tokens each"),
        ("recipe", ", ".join(f"{name} {value}" for name, value in how.items() if name != "steps")),
        ("trained on", f"{texts['tokens']['training']:,} tokens, {texts['bytes']['training']:,} bytes"),
        (
            "held out",
            f"{texts['tokens']['held_out']:,} tokens, {texts['bytes']['held_out']:,} bytes, by {run['split']}",
        ),
        ("seed", str(run["seed"])),
    ]
    if held_out:
        best = min(held_out, key=lambda pair: pair[1])
        rows.insert(0, ("held-out loss", f"{held_out[-1][1]:.4f} nats per token; lowest {best[1]:.4f} at {best[0]:,}"))
    if len(seconds) > 2:
        speed = train.DISPATCH * per_step / float(np.median(seconds[1:]))
        rows.append(("speed", f"{speed:,.0f} tokens/s (median), {math.ceil(sum(seconds)):,} s of training"))
    return rows


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


def _chart(trained: list[tuple[int, float]], held_out: list[tuple[int, float]]) -> str:
    steps, losses = (np.array(column, float) for column in zip(*trained, strict=True))
    width = -(-len(steps) // POINTS)
    starts = np.arange(0, len(steps), width)
    counts = np.diff(starts, append=len(steps))
    x, y = np.add.reduceat(steps, starts) / counts, np.add.reduceat(losses, starts) / counts
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ontogeny", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        axes.plot(x, y, color=TRAINING, lw=1.4)
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=HELD_OUT, ms=3, lw=1.2)
        axes.set_xlabel("step", color=INK)
        axes.set_ylabel("loss, nats per token", color=INK)
        axes.tick_params(colors=INK)
        axes.grid(axis="y", color=RULE, linewidth=0.4)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(RULE)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", target.getvalue(), flags=re.DOTALL)
    told = f"Loss from {losses[0]:.3f} to {losses[-1]:.3f} nats per token in {int(steps[-1]):,} steps"
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{told}" ', 1)
