"""Intervals of parameters, as the settings `vary` and `drift` state them."""

import re
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.plugins import finite_float


class Range(NamedTuple):
    """An interval of values of a parameter, such as `length:0.3..0.8`."""

    parameter: str
    low: float
    high: float
    first_step: int = 0  # of a change in time, as in `length:0.3..0.8:500..1500`
    num_steps: int = 0


def parse_range(text: object, setting: str, *, has_steps: bool = False) -> Range:
    """`'length:0.3..0.8'` -> `Range('length', 0.3, 0.8)`, and with steps `'length:0.3..0.8:1000'`.

    The steps are their number, or the first and the last one: `500..1500`.

    Args:
        text: The value of a setting, or one part of it.
        setting: The name of the setting, for the message.
        has_steps: Whether a number of steps follows.

    Raises:
        BadInput: The text is not of this form, or the lower bound exceeds the upper one.
    """
    number = r"([-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)"  # no dot at its end, which would be one of the range
    steps = r":(?:(\d+)\.\.)?(\d+)" if has_steps else ""
    match = re.fullmatch(rf"\s*(\w+):{number}\.\.{number}{steps}\s*", str(text))
    form = "PARAMETER:LOW..HIGH" + (":STEPS" if has_steps else "")
    if match is None:
        raise BadInput(f"the setting '{setting}' is of the form {form}, not '{text}'")
    low, high = (finite_float(float(bound), f"a bound of the setting '{setting}'") for bound in match.group(2, 3))
    if low > high and not has_steps:
        raise BadInput(f"in the setting '{setting}', the lower bound {low:g} exceeds the upper bound {high:g}")
    first, last = (int(step or 0) for step in match.groups()[3:]) if has_steps else (0, 0)
    if first > last:
        raise BadInput(f"in the setting '{setting}', the first step {first} comes after the last step {last}")
    return Range(match[1], low, high, first, last - first)
