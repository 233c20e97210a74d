"""Parts of a study, which run on machines that share nothing: part 3 of 20, as in a job array of Slurm.

A part has complete units, so no part waits for another one. All parts of a study follow from its file alone, so every
machine divides it in the same way.
"""

import heapq
import re
from collections.abc import Sequence
from typing import NamedTuple

from ontogeny.errors import BadInput
from ontogeny.studies.plan import Measurement, Sizes, dependencies
from ontogeny.studies.units import expected_seconds_of_unit, group_units

MAX_PARTS = 10_000


class Part(NamedTuple):
    """One part of a study, from 1 to the number of parts."""

    number: int
    num_parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num_parts}"


def parse_part(text: str) -> Part:
    """Read `3/20`.

    Raises:
        BadInput: The text is no part.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    part = Part(*map(int, match.groups())) if match else Part(0, 0)
    if not 1 <= part.number <= part.num_parts <= MAX_PARTS:
        raise BadInput(
            f"a part is written as K/N, such as 3/20, with K from 1 to N and N at most {MAX_PARTS:,}, not '{text}'"
        )
    return part


def divide(measurements: Sequence[Measurement], sizes: Sizes, num_parts: int) -> list[set[str]]:
    """Divide a study into parts that are expected to take equally long.

    The units are assigned one by one, the longest first, to the part with the least time so far (longest processing
    time first). Every part records the environments; a difference belongs to the part that has both of its agents, and
    where there is none, `ontogeny study merge` measures it.

    Args:
        measurements: Of the undivided study.
        sizes: Of its agents.
        num_parts: At least 1.

    Returns:
        The ids of the measurements of each part.
    """
    units = group_units(measurements)
    units += [[m] for m in measurements if m.kind == "upper_bound"]
    seconds = [expected_seconds_of_unit(unit, sizes) for unit in units]
    totals = [(0.0, number) for number in range(num_parts)]  # a heap
    parts = [{m.id for m in measurements if m.kind == "environment"} for _ in range(num_parts)]
    owners: dict[str, int] = {}
    for index in sorted(range(len(units)), key=lambda i: -seconds[i]):
        total, owner = totals[0]
        heapq.heapreplace(totals, (total + seconds[index], owner))
        owners |= {measurement.id: owner for measurement in units[index]}
    for name, owner in owners.items():
        parts[owner].add(name)
    for measurement in measurements:
        if measurement.kind == "difference":
            numbers = {owners[name] for name in dependencies(measurement)}
            if len(numbers) == 1:
                parts[numbers.pop()].add(measurement.id)
    return parts


def select_part(measurements: Sequence[Measurement], sizes: Sizes, part: Part) -> list[Measurement]:
    """The measurements of a part of a study, in their order; the arguments are those of `divide`."""
    selected = divide(measurements, sizes, part.num_parts)[part.number - 1]
    return [measurement for measurement in measurements if measurement.id in selected]
