"""What the measurements of a study cost: an estimate before the first one is done, and the time that is left after it.

The estimate before knows the size of an agent and of its lifetimes but not its program; it serves to divide a study
into equal parts. The time that is left follows from the measured times of the finished measurements.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean

from ontogeny.audit.attribution import CELLS
from ontogeny.studies.plan import Measurement, Sizes

START_SECONDS = {"development": 4.0, "evaluation": 3.0, "recorded_lifetime": 1.0, "attribution": 10.0}
SECONDS_PER_STEP = 5e-8  # of a small network, in a batch of lifetimes
SECONDS_PER_PARAMETER = 1.5e-11  # and step


def expected_seconds(measurement: Measurement, sizes: Sizes) -> float:
    """The time that a measurement is expected to take, before any was measured.

    Args:
        measurement: Of any kind; those without an agent take no time worth counting.
        sizes: Of the agents of the study.
    """
    agent, env = measurement.agent, measurement.env
    if agent is None or measurement.kind == "difference":
        return 0.01
    train_env = measurement.train_env.name if measurement.train_env else env.name
    size = sizes[agent.name, train_env]
    num_steps = {
        "development": size.num_training_env_steps,
        "evaluation": size.num_steps * (agent.num_tasks or env.num_tasks),
        "recorded_lifetime": size.num_steps,
        "attribution": size.num_steps * env.num_attribution_tasks * (len(CELLS) + 1),
    }[measurement.kind]
    per_step = SECONDS_PER_STEP + SECONDS_PER_PARAMETER * size.num_parameters
    return START_SECONDS[measurement.kind] + num_steps * per_step


class RemainingTime:
    """The time that the remaining measurements of a study take, from those that are done."""

    def __init__(self, measurements: Iterable[Measurement], sizes: Sizes, seconds_by_id: Mapping[str, float]) -> None:
        """Collect what is known.

        Args:
            measurements: All of the study or of its part.
            sizes: Of the agents of the study.
            seconds_by_id: Wall times of the measurements that an earlier process did.
        """
        self._expected = {m.id: expected_seconds(m, sizes) for m in measurements}
        self._groups = {m.id: (m.kind, m.env.name, m.agent.name if m.agent else "") for m in measurements}
        self._measured: dict[tuple[str, str, str], list[float]] = {}
        self._totals: dict[str, tuple[float, float]] = {}  # by kind: seconds that were measured, and expected
        for name, seconds in seconds_by_id.items():
            self.add(name, seconds)

    def add(self, name: str, seconds: float) -> None:
        """Add the wall time of a measurement that is done."""
        group = self._groups.get(name, ("", "", ""))
        if group[0] in START_SECONDS:
            measured, expected = self._totals.get(group[0], (0.0, 0.0))
            self._totals[group[0]] = (measured + seconds, expected + self._expected[name])
            self._measured.setdefault(group, []).append(seconds)

    def estimate(self, names: Iterable[str]) -> float | None:
        """The sum of the times that measurements will take, one after the other.

        Args:
            names: Ids of measurements that are not done.

        Returns:
            Seconds; None while nothing has been measured.
        """
        if not self._totals:
            return None
        overall = sum(measured for measured, _ in self._totals.values()) / sum(e for _, e in self._totals.values())
        total = 0.0
        for name in names:
            group = self._groups[name]
            if group in self._measured:  # other seeds of the same agent in the same environment
                total += fmean(self._measured[group])
            elif group[0] in START_SECONDS:
                measured, expected = self._totals.get(group[0], (overall, 1.0))
                total += self._expected[name] * measured / expected
        return total
