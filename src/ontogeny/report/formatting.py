"""Numbers as readers of a report expect them: rounded to their precision, with separators and a true minus sign."""

import math

MAX_FIXED = 1e12  # larger numbers have an exponent
MAX_PLACES = 12  # after the decimal point; smaller numbers have an exponent


def format_number(value: float, digits: int | None = None) -> str:
    """Format a score.

    Args:
        value: Any float; infinities are written with their sign.
        digits: Significant digits; by default about four figures in all.

    Returns:
        Text such as `6.660`, `78.69`, `2,038.3` or `−∞`.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞" if value > 0 else "−∞"
    if digits is not None and abs(value) < 10.0 ** (digits - 1 - MAX_PLACES):
        return f"{value:.{digits}g}".replace("-", "−")
    if digits is None:
        places = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    else:
        places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return format_fixed(value, places)


def format_fixed(value: float, places: int) -> str:
    """Format a number with a fixed number of decimal places, thousands separators and a true minus sign.

    A number beyond `MAX_FIXED` has four significant digits and an exponent instead.
    """
    if abs(value) >= MAX_FIXED:
        return f"{value:.4g}".replace("-", "−")
    text = f"{value:,.{places}f}".replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("−")


def format_total(value: float) -> str:
    """Format the sum of one lifetime: at most two decimal places, none where the value is whole."""
    return format_fixed(value, 0 if abs(value - round(value)) < 0.005 else 2)


def format_mean(mean: float, standard_error: float) -> str:
    """Format a mean with one standard error, both to the decimal place that the error determines: `162.55 ± 0.08`."""
    if standard_error <= 0 or not math.isfinite(standard_error):
        return format_number(mean)
    places = max(1 - math.floor(math.log10(standard_error)), 0)
    if places > MAX_PLACES:
        return f"{format_number(mean)} ± {format_number(standard_error, 2)}"
    return f"{format_fixed(mean, places)} ± {format_fixed(standard_error, places)}"


def format_count(count: float) -> str:
    """Format a count: `1,080`, `26.2 million`, `1.3 billion`."""
    for unit, word in ((1e9, " billion"), (1e6, " million")):
        if count >= unit:
            return f"{count / unit:.3g}{word}"
    return f"{count:,.0f}"


def pluralize(number: int, noun: str) -> str:
    """Format a count with its noun: `1 row`, `1,080 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
