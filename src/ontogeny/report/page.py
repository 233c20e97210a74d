"""Pages and their parts, rendered by Jinja2 with autoescape: plain strings are escaped, `Markup` passes as it is."""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from ontogeny.report.formatting import format_mean, format_number
from ontogeny.stats import Interval

VERDICT_SIGNS = {"above": "▲", "level": "=", "below": "▼"}


class Section(NamedTuple):
    """One section of a page."""

    anchor: str  # id of the section, the target of links
    title: str
    body: Markup


class TableRow(NamedTuple):
    """One row of a table, with a CSS class of its own."""

    cells: Sequence[str]
    css_class: str = ""


@cache
def environment(package: str) -> jinja2.Environment:
    """The template environment of a package.

    Args:
        package: Import path of a package with a folder `templates`; the templates of `ontogeny.report` are found after
            its own.

    Returns:
        An environment with autoescape in which an undefined variable is an error.
    """
    loaders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "ontogeny.report"))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(package: str, template: str, **variables: Any) -> Markup:
    """Render a template of a package.

    Args:
        package: Import path of the package which holds the template, usually `__package__`.
        template: File name in the package's folder `templates`.
        **variables: The names that the template uses.

    Returns:
        HTML.
    """
    return Markup(environment(package).get_template(template).render(**variables))


def load_macros(package: str, template: str, **variables: Any) -> Any:
    """Load a template whose macros are called one by one.

    Args:
        package: Import path of the package which holds the template.
        template: File name in the package's folder `templates`.
        **variables: The names that the macros use.

    Returns:
        An object with one method per macro, each of which returns HTML.
    """
    return environment(package).get_template(template).make_module(variables)


def document(title: str, opening: Markup, sections: Sequence[Section], kind: str) -> str:
    """Render a whole page.

    Args:
        title: Heading of the page and title of the browser's tab.
        opening: HTML between the heading and the table of contents.
        sections: In the order of the page.
        kind: Kind of report, printed above the heading, such as `study`.

    Returns:
        A self-contained HTML document: its style sheet and figures are inline, and it has no script.
    """
    style = Markup(environment("ontogeny.report").get_template("report.css").render())
    return render(
        "ontogeny.report",
        "page.html.j2",
        title=title,
        opening=opening,
        sections=[section for section in sections if section.body],
        kind=kind,
        style=style,
    )


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str] | TableRow], numeric: Collection[int] = ()
) -> Markup:
    """Render a table which scrolls inside its own box.

    Args:
        caption: Printed above the table.
        heads: Column heads; an empty one leaves the head cell empty.
        rows: Cells by row; the first cell of a row is its head.
        numeric: Indices of the columns that are aligned to the right.
    """
    lines = [row if isinstance(row, TableRow) else TableRow(row) for row in rows]
    return Markup(_parts().table(caption, heads, lines, numeric))


def figure(chart: Markup, title: str, note: str) -> Markup:
    """Render a chart with its title and a note."""
    return Markup(_parts().figure(chart, title, note))


def panels(figures: Sequence[Markup]) -> Markup:
    """Place figures side by side where the screen is wide enough."""
    return Markup(_parts().panels(figures))


def bullets(sentences: Sequence[str]) -> Markup:
    """Render a list with one sentence per entry."""
    return Markup(_parts().bullets(sentences))


def score(interval: Interval) -> Markup:
    """Render a mean with one standard error; the 95 % interval is shown where the pointer rests."""
    limits = (
        f"95 % interval {format_number(interval.low)} to {format_number(interval.high)}, {interval.num_tasks:,} tasks"
    )
    mean, _, error = format_mean(interval.mean, interval.standard_error).partition(" ± ")
    return Markup(_parts().score(mean, error, limits))


def agent(name: str, approach: str) -> Markup:
    """Render an agent's name in the color of its approach."""
    return Markup(_parts().agent(name, approach))


def difference(interval: Interval) -> Markup:
    """Render a signed mean with its 95 % interval below."""
    sign = "+" if interval.mean > 0 else ""
    mean = format_mean(interval.mean, interval.standard_error).partition(" ± ")[0]
    return Markup("{}{}<br><small>{} to {}</small>").format(
        sign, mean, format_number(interval.low), format_number(interval.high)
    )


def verdict(word: str, detail: str = "") -> Markup:
    """Render a verdict (above, level or below) with its sign; `detail` is shown where the pointer rests."""
    return Markup(_parts().verdict(word, VERDICT_SIGNS[word], detail))


def _parts() -> Any:
    """The macros of the template `parts.html.j2`."""
    return environment("ontogeny.report").get_template("parts.html.j2").module
