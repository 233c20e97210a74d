"""The page's parts: document, sections, tables, figures. HTML without scripts; knows nothing of what is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from ontogeny.report.formatting import format_mean
from ontogeny.report.formatting import format_number as number
from ontogeny.stats import Interval

STYLE = Path(__file__).parent / "templates" / "report.css"
SIGNS = {"above": "▲", "level": "=", "below": "▼"}


class Section(NamedTuple):
    anchor: str
    title: str
    body: str  # HTML


@dataclass(frozen=True)
class Row:
    """A table row of HTML cells, with a class of its own."""

    cells: Sequence[str]
    kind: str = ""


def document(title: str, opening: str, sections: Sequence[Section], kind: str = "study") -> str:
    """The whole page; `opening` is what stands under the title, `kind` above it."""
    style = STYLE.read_text(encoding="utf-8")
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title"><h2 id="{s.anchor}-title">{escape(s.title)}</h2>'
        f"{s.body}</section>"
        for s in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header>
<p class="eyebrow">ontogeny · {escape(kind)}</p>
<h1>{escape(title)}</h1>
{opening}
</header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main id="content">
{body}
</main>
</body>
</html>
"""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str] | Row], numeric: Sequence[int] = ()) -> str:
    """A table that scrolls inside its own box; `numeric` columns are aligned to the right. Cells are HTML."""

    def kind(column: int) -> str:
        return ' class="n"' if column in numeric else ""

    def line(row: Sequence[str] | Row) -> str:
        cells, name = (row.cells, row.kind) if isinstance(row, Row) else (row, "")
        out = "".join(
            f'<th scope="row"{kind(i)}>{cell}</th>' if i == 0 else f"<td{kind(i)}>{cell}</td>"
            for i, cell in enumerate(cells)
        )
        return f'<tr class="{name}">{out}</tr>' if name else f"<tr>{out}</tr>"

    head = "".join(
        f'<th scope="col"{kind(i)}>{escape(text)}</th>' if text else "<td></td>" for i, text in enumerate(heads)
    )
    label = escape(caption, quote=True)
    return (
        f'<div class="table" role="region" aria-label="{label}" tabindex="0">'
        f"<table><caption><span>{label}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(line(row) for row in rows)}</tbody></table></div>"
    )


def figure(chart: str, title: str, note: str) -> str:
    """A chart with what it shows: `title` and `note` are HTML."""
    told = f" <span>{note}</span>" if note else ""
    return f'<figure><figcaption><strong>{title}</strong>{told}</figcaption><div class="chart">{chart}</div></figure>'


def panels(figures: Sequence[str]) -> str:
    return f'<div class="panels">{"".join(figures)}</div>'


def score(value: Interval) -> str:
    """A mean with one standard error; the 95 % interval where a pointer rests."""
    told = f"95 % interval {number(value.low)} to {number(value.high)}, {value.num_tasks:,} tasks"
    mean, _, error = format_mean(value.mean, value.standard_error).partition(" ± ")
    beside = f"<small> ± {error}</small>" if error else ""
    return f'<span class="score" title="{told}">{mean}{beside}</span>'


def agent(name: str, model: str) -> str:
    return f'<span class="agent {model}">{escape(name)}</span>'


def difference(value: Interval) -> str:
    """A signed mean with its 95 % interval below."""
    sign = "+" if value.mean > 0 else ""
    return f"{sign}{format_mean(value.mean, value.standard_error).partition(' ± ')[0]}<br><small>{number(value.low)} to {number(value.high)}</small>"


def verdict(word: str, detail: str = "") -> str:
    told = f' title="{escape(detail, quote=True)}"' if detail else ""
    return f'<span class="verdict {word}"{told}><span aria-hidden="true">{SIGNS[word]}</span> {word}</span>'
