"""The shared parts of HTML reports: plain strings are escaped, pages are self-contained, the same input gives the same
bytes."""

import math

import pytest
from markupsafe import Markup

from ontogeny.report import charts, page
from ontogeny.report.formatting import format_count, format_fixed, format_mean, format_number, format_total
from ontogeny.stats import Interval

INTERVAL = Interval(mean=162.5481, standard_error=0.0831, low=162.4, high=162.7, num_tasks=4000)


def test_plain_strings_are_escaped_and_markup_passes():
    html = page.table(
        "a < b", ["", "<head>"], [["<x>", Markup("<b>bold</b>")], page.TableRow(["y", "1"], "first")], (1,)
    )
    assert "&lt;x&gt;" in html and "<b>bold</b>" in html and "a &lt; b" in html and "&lt;head&gt;" in html
    assert '<td class="numeric">1</td>' in html and '<tr class="first">' in html
    assert "&lt;script&gt;" in page.agent("<script>", "evolution")
    assert "&#34;" in page.verdict("above", 'a "quoted" detail')


def test_a_document_holds_its_sections_and_refers_to_nothing_outside():
    section = page.Section("scores", "Scores & more", page.bullets(["one <sentence>"]))
    empty = page.Section("empty", "An empty section", Markup())
    html = page.document("A <title>", Markup("<p>opening</p>"), [section, empty], "study")
    assert "A &lt;title&gt;" in html and "Scores &amp; more" in html and "one &lt;sentence&gt;" in html
    assert 'href="#scores"' in html and "empty" not in html.split("</style>")[1]
    assert "http:" not in html and "https:" not in html and "<script" not in html


def test_a_chart_has_the_same_bytes_twice_and_uses_the_colors_of_the_page():
    def draw() -> str:
        with charts.new_panel() as (figure, axes):
            axes.plot([0, 1], [0, 1], color=charts.EVOLUTION)
            return charts.inline_svg(figure, "f1", 'a "label"')

    assert draw() == draw()
    assert "var(--evolution)" in draw() and "#050505" not in draw() and "&#34;label&#34;" in draw()


def test_an_interval_is_rendered_with_its_error_and_limits():
    assert "162.548<small> ± 0.083</small>" in page.score(INTERVAL) and "4,000 tasks" in page.score(INTERVAL)
    assert page.difference(INTERVAL).startswith("+162.548<br>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_number(0), "0"),
        (format_number(-math.inf), "−∞"),
        (format_number(6.65999), "6.660"),
        (format_number(78.694), "78.69"),
        (format_number(-0.00001, 2), "−0.000010"),
        (format_fixed(-0.0001, 2), "0.00"),
        (format_total(-0.0001), "0"),
        (format_total(-2.0), "−2"),
        (format_mean(2041.81, 12.3), "2,042 ± 12"),
        (format_mean(3.0, 0.0), "3.000"),
        (format_mean(3.0, 1e-30), "3.000 ± 1e−30"),
        (format_number(-1e38), "−1e+38"),
        (format_fixed(123_456_789_012.5, 1), "123,456,789,012.5"),
        (format_number(1.2e-38, 2), "1.2e−38"),
        (format_count(26_200_000), "26.2 million"),
        (format_count(1080), "1,080"),
    ],
)
def test_numbers_are_rounded_to_their_precision(text, expected):
    assert text == expected
