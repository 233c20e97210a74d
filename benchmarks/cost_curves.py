"""Seconds per generation of evolution against the size of its parts: points, fitted slopes and a chart, as JSON lines.

    python benchmarks/cost_curves.py --records cost-curves.jsonl --chart cost-curves.svg
    python benchmarks/cost_curves.py --records cost-curves.jsonl --curves population --sizes 64 128 --again
    python benchmarks/cost_curves.py --quick

One factor varies, all others stay as in `BASE`: population, steps of a lifetime, hidden units of the network. A fourth
curve is the learned content of `neural_model_based`: seconds of a lifetime of 128 steps, in which it updates its
content 17 times, against the width of that content. Every point is a process of its own with the JAX settings of
`ontogeny train`. It compiles, runs one generation that does not count, and repeats the generation for at least 3 s and
three times; twice where that takes 20 s, and once where one takes 40 s. The point is the median of the wall times.

Points that stand in the file are not measured again, so the same command resumes. With `--again` the chosen points are
measured once more, and of several lines for one point the shortest times count, because other programs only add time.
The processor time of a point is the sum over all cores; it depends less on other programs than wall time does, so
that explanations use it. The straight part of a curve is the longest run of sizes that deviate from their regression
line in logarithms by less than `MAX_DEVIATION`; its slope has a 95 % interval by Student's t.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import outer_loop

BASE = {"population": 256, "lifetimes": 16, "steps": 100, "width": 48}
QUICK_BASE = {"population": 16, "lifetimes": 2, "steps": 4, "width": 4}
CONTENT_STEPS = 128
ENOUGH_SECONDS = {1: 40.0, 2: 20.0, 3: 3.0}  # repeats -> seconds after which no further repeat is needed
MAX_REPEATS = 100
MAX_DEVIATION = 0.1  # of a point from the regression line, relative
MIN_POINTS = 3  # of a straight part
COLORS = ("#1b1f24", "#57606a", "#d0d7de", "#ffffff", "#2563b0", "#b45309", "#57606a")  # of `charts.CSS_VARIABLES`
Line = dict[str, Any]


class Curve(NamedTuple):
    """One factor and the sizes that it takes.

    Attributes:
        factor: The key of a setting.
        sizes: In ascending order.
        label: Of the horizontal axis.
        changes: Of the base setting.
    """

    factor: str
    sizes: Sequence[int]
    label: str
    changes: Mapping[str, int]


WIDTHS = (16, 32, 64, 128, 256, 512, 768, 1024)
STEPS = (100, 200, 500, 1000, 1024, 1025, 2000, 5000, 10_000, 30_000, 100_000)
CURVES = {
    "population": Curve("population", [2**k for k in range(6, 17)], "members of the population", {}),
    "lifetime": Curve("steps", STEPS, "steps of a lifetime", {}),
    "width": Curve("width", WIDTHS, "hidden units, lifetimes of 100 steps", {}),
    "width_one_step": Curve("width", (16, 64, 256, 512, 1024), "hidden units, lifetimes of 1 step", {"steps": 1}),
    "content": Curve("content_width", (16, 32, 64, 128, 256, 512), "width of the learned content", {}),
}
QUICK_SIZES = {
    "population": (4, 8, 16),
    "lifetime": (2, 4, 8),
    "width": (2, 4, 8),
    "width_one_step": (2, 4, 8),
    "content": (8, 16, 24),
}
WIDE = ("wide network", "wide network, four times the lifetimes")
PARTS = ("generation of 4 members", "baseline", "matrix product", *WIDE)  # figures that explain the curves


def measure_generation(setting: Mapping[str, int]) -> tuple[Callable[[], None], Line]:
    """A function that computes one generation."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from ontogeny.parallel.devices import AXIS
    from ontogeny.rng import key_from_seed
    from ontogeny.stages.assembly import assemble, build_development
    from ontogeny.stages.spec import parse_run_spec

    sizes = f"population_size={setting['population']},num_lifetimes={setting['lifetimes']},generations_per_call=1"
    spec = parse_run_spec(
        {
            "agent": f"recurrent:hidden_size={setting['width']}",
            "env": f"bandit:num_arms=2,num_pulls={setting['steps']}",
            "development": f"evolution:{sizes}",
        }
    )
    development = build_development(spec, assemble(spec))
    # The first state is where later states are, or the second generation would be compiled anew.
    replicated = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())
    state = jax.device_put(development.init(key_from_seed(0)), replicated)

    def run_generation() -> None:
        nonlocal state
        state, info = development.step(state)
        info["fitness"].tolist()

    return run_generation, {}


def measure_lifetime(setting: Mapping[str, int]) -> tuple[Callable[[], None], Line]:
    """A function that computes one lifetime of an agent whose learned content has a given width."""
    import jax

    from ontogeny import plugins, steering
    from ontogeny.rng import key_from_seed, sample_lifetime_keys
    from ontogeny.rollouts import begin_lifetime, rollout_lifetime

    env = plugins.build("environments", "bandit", num_arms=2, num_pulls=setting["steps"])
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "neural_model_based", env.spec, drives, width=setting["content_width"])
    key = sample_lifetime_keys(key_from_seed(0), 1, "training")[0]
    genome = agent.genome(key)
    run = jax.jit(lambda key: rollout_lifetime(key, agent, env, drives, genome, True)[1].reward)
    content = jax.eval_shape(lambda: begin_lifetime(key, agent, genome).weights.content)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(content))
    return lambda: run(key).tolist(), {"parameters": num_parameters}


def measure_baseline(setting: Mapping[str, int]) -> tuple[Callable[[], None], Line]:
    """A function that computes the lifetimes of the baseline agent, which every generation evaluates once."""
    from functools import partial

    import jax

    from ontogeny import plugins, steering
    from ontogeny.development.evolution import mean_fitness
    from ontogeny.rng import key_from_seed, sample_lifetime_keys

    env = plugins.build("environments", "bandit", num_arms=2, num_pulls=setting["steps"])
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "random", env.spec, drives)
    run = jax.jit(partial(mean_fitness, agent, env=env, steering=drives))
    keys = sample_lifetime_keys(key_from_seed(0), setting["lifetimes"], "training")
    genome = agent.genome(keys[0])
    return lambda: run(keys, genome)[0].tolist(), {}


def measure_matrix_product(setting: Mapping[str, int]) -> tuple[Callable[[], None], Line]:
    """A function that computes ten products of matrices of 1,024 rows."""
    del setting
    return outer_loop.matrix_product(0, 0), {"flops": 10 * 2 * 1024**3}


def choose_measurement(name: str) -> Callable[[Mapping[str, int]], tuple[Callable[[], None], Line]]:
    """The measurement of a curve or part."""
    special = {
        "content": measure_lifetime,
        "baseline": measure_baseline,
        "matrix product": measure_matrix_product,
    }
    return special.get(name, measure_generation)


def measure_point(name: str, setting: Mapping[str, int], is_quick: bool) -> Line:
    """Measures one point in this process.

    Args:
        name: A curve or a part.
        setting: All sizes.
        is_quick: Whether three repeats suffice in any case.
    """
    started_at = time.perf_counter()
    run, facts = choose_measurement(name)(setting)
    run()
    times: list[tuple[float, float]] = []
    while len(times) < MAX_REPEATS:
        before, cpu_before = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - before, time.process_time() - cpu_before))
        required = 0.0 if is_quick else ENOUGH_SECONDS[3]
        if sum(seconds for seconds, _ in times) >= (ENOUGH_SECONDS | {3: required}).get(len(times), required):
            break
    wall = [seconds for seconds, _ in times]
    facts |= {"processor_seconds": round(statistics.median(seconds for _, seconds in times), 6), "repeats": len(times)}
    facts |= {"load": round(os.getloadavg()[0], 1), "processors": os.cpu_count()}
    return make_line(
        name,
        statistics.median(wall),
        "s per lifetime" if name == "content" else "s per generation" if name in CURVES else "s",
        se=outer_loop.standard_error(wall),
        seconds=round(time.perf_counter() - started_at, 1),
        setting={**setting, **facts},
    )


def make_line(name: str, amount: float, unit: str, **fields: Any) -> Line:
    """A JSON line with all fields of the project's records."""
    empty = {"se": None, "peer": None, "peer_value": None, "ratio": None, "seconds": None, "setting": {}}
    line = {"name": f"cost_curves/{name}", "value": amount, "unit": unit} | empty | fields
    return {key: float(f"{entry:.5g}") if isinstance(entry, float) else entry for key, entry in line.items()}


def list_points(names: Iterable[str], is_quick: bool) -> list[tuple[str, dict[str, int]]]:
    """The names and settings of all points of some curves, and of the parts that explain them."""
    base = QUICK_BASE if is_quick else BASE
    points: list[tuple[str, dict[str, int]]] = []
    for name in names:
        factor, sizes, _, changes = CURVES[name]
        for size in QUICK_SIZES[name] if is_quick else sizes:
            around = {"steps": QUICK_BASE["steps"] if is_quick else CONTENT_STEPS} if name == "content" else base
            points.append((name, {**around, **changes, factor: size}))
    points.append((PARTS[0], base | {"population": 4}))
    points.append((PARTS[1], {key: base[key] for key in ("lifetimes", "steps")}))
    points.append((PARTS[2], {}))
    wide = base | {"population": 16, "width": QUICK_BASE["width"] if is_quick else WIDTHS[-1]}
    points.append((WIDE[0], wide))
    points.append((WIDE[1], wide | {"lifetimes": 4 * wide["lifetimes"]}))
    return points


def matches(line: Line, name: str, setting: Mapping[str, int]) -> bool:
    """Whether a line is a measurement of a point."""
    return line["name"] == f"cost_curves/{name}" and setting.items() <= line["setting"].items()


def combine(lines: Iterable[Line], name: str, setting: Mapping[str, int]) -> Line | None:
    """The fastest measurement of a point, with the least processor time of all; None where there is none."""
    candidates = [line for line in lines if matches(line, name, setting)]
    if not candidates:
        return None
    line = min(candidates, key=lambda line: line["value"])
    processor_seconds = min(line["setting"]["processor_seconds"] for line in candidates)
    return line | {"setting": line["setting"] | {"processor_seconds": processor_seconds}}


def measure_in_process(name: str, setting: Mapping[str, int]) -> Line:
    """Measures one point in a process of its own, with the JAX settings of a command of the command line."""
    command = [sys.executable, __file__, "--point", json.dumps([name, setting])]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"the point {name} {setting} failed with exit code {process.returncode}")
    return json.loads(process.stdout.splitlines()[-1])


class Slope(NamedTuple):
    """A regression line through logarithms: log seconds = intercept + exponent * log size."""

    exponent: float
    standard_error: float
    interval: tuple[float, float]  # 95 %, of the exponent
    intercept: float
    sizes: Sequence[float]

    def seconds(self, size: float) -> float:
        """The seconds that the line gives for a size."""
        return math.exp(self.intercept + self.exponent * math.log(size))


def fit_slope(sizes: Sequence[float], seconds: Sequence[float]) -> Slope:
    """The regression line of at least three points."""
    from ontogeny.stats import confidence_interval

    x, y = np.log(sizes), np.log(seconds)
    exponent, intercept = (float(coefficient) for coefficient in np.polyfit(x, y, 1))
    freedom = len(x) - 2
    error = math.sqrt(np.sum((y - intercept - exponent * x) ** 2) / freedom / np.sum((x - np.mean(x)) ** 2))
    interval = confidence_interval(exponent, error, degrees_of_freedom=freedom)
    return Slope(exponent, error, (interval.low, interval.high), intercept, sizes)


def find_straight_part(sizes: Sequence[float], seconds: Sequence[float]) -> Slope:
    """The regression line of the longest run of points close to it; of equally long runs, the one of larger sizes."""
    for length in range(len(sizes), MIN_POINTS - 1, -1):
        for begin in range(len(sizes) - length, -1, -1):
            run = slice(begin, begin + length)
            slope = fit_slope(sizes[run], seconds[run])
            fitted = np.array([slope.seconds(size) for size in sizes[run]])
            deviation = np.max(np.abs(np.log(np.array(seconds[run]) / fitted)))
            if length == MIN_POINTS or deviation <= math.log(1 + MAX_DEVIATION):
                return slope
    raise SystemExit(f"a slope needs at least {MIN_POINTS} points")


def fit_fixed_part(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of size 0 and seconds per unit, by least squares of relative errors."""
    x, y = np.array(sizes, float), np.array(seconds)
    (fixed, per_unit), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)
    return float(fixed), float(per_unit)


def curve_of(points: Mapping[str, Sequence[Line]], name: str) -> tuple[list[int], list[float], list[float]]:
    """Sizes, wall times and processor times of a curve."""
    factor, lines = CURVES[name].factor, points[name]
    return (
        [line["setting"][factor] for line in lines],
        [line["value"] for line in lines],
        [line["setting"]["processor_seconds"] for line in lines],
    )


def describe_curve(points: Mapping[str, Sequence[Line]], name: str) -> list[Line]:
    """The slopes of a curve by two clocks, and how far its ends are from the straight part in processor time."""
    sizes, wall_seconds, processor_seconds = curve_of(points, name)
    lines = []
    for clock, seconds in (("wall time", wall_seconds), ("processor time", processor_seconds)):
        slope = find_straight_part(sizes, seconds)
        setting = {"curve": name, "clock": clock, "sizes": [slope.sizes[0], slope.sizes[-1]]}
        setting |= {"points": len(slope.sizes), "interval": [round(end, 3) for end in slope.interval]}
        lines.append(make_line("slope", slope.exponent, "exponent", se=slope.standard_error, setting=setting))
    slope = find_straight_part(sizes, processor_seconds)
    for size, seconds in (sizes[0], processor_seconds[0]), (sizes[-1], processor_seconds[-1]):
        fitted = slope.seconds(size)
        fields = {"peer": "line of the straight part", "peer_value": fitted, "ratio": seconds / fitted}
        setting = {"curve": name, "size": size, "clock": "processor time"}
        lines.append(make_line("end of a curve", seconds, "s", **fields, setting=setting))
    return lines


def explain_fixed_parts(points: Mapping[str, Sequence[Line]]) -> list[Line]:
    """The part of a generation that grows with neither population nor lifetime, beside direct measurements."""
    lines = []
    for name, part in (("population", PARTS[0]), ("population", PARTS[1]), ("lifetime", None)):
        if name in points:
            sizes, _, seconds = curve_of(points, name)
            fixed, per_unit = fit_fixed_part(sizes, seconds)
            fields: dict[str, Any] = {}
            if part is not None:
                measured = points[part][0]["setting"]["processor_seconds"]
                fields = {"peer": part, "peer_value": measured, "ratio": fixed / measured}
            setting = {"curve": name, "seconds_per_unit": float(f"{per_unit:.4g}")}
            unit = "s of processor time"
            lines.append(make_line("fixed part", fixed, unit, **fields, setting=setting))
    return lines


def explain_steps(points: Mapping[str, Sequence[Line]]) -> list[Line]:
    """Processor time per step beside that of the lifetime before the first division into chunks."""
    if "lifetime" not in points:
        return []
    sizes, _, seconds = curve_of(points, "lifetime")
    lines, limit = [], max((size for size in sizes if size <= 1024), default=sizes[0])
    reference = seconds[sizes.index(limit)] / limit
    for size, total in zip(sizes, seconds, strict=True):
        fields = {"peer": f"{limit} steps", "peer_value": reference, "ratio": total / size / reference}
        lines.append(make_line("processor time per step", total / size, "s", **fields, setting={"steps": size}))
    return lines


def explain_widths(points: Mapping[str, Sequence[Line]]) -> list[Line]:
    """By width, the rate of the recurrent products and the share of time that does not depend on the steps."""
    if "width" not in points or "width_one_step" not in points:
        return []
    matrix = points[PARTS[2]][0]["setting"]
    peak = matrix["flops"] / matrix["processor_seconds"] / 1e9
    single = {line["setting"]["width"]: line["setting"]["processor_seconds"] for line in points["width_one_step"]}
    lines = []
    for setting in (line["setting"] for line in points["width"]):
        width, seconds = setting["width"], setting["processor_seconds"]
        if width in single:
            num_steps = setting["population"] * setting["lifetimes"] * (setting["steps"] - 1)
            rate = 6 * width**2 * num_steps / max(seconds - single[width], 1e-9) / 1e9
            fields = {"peer": "product of 1,024 x 1,024 matrices", "peer_value": peak, "ratio": rate / peak}
            unit = "GFLOP/s of one core's work"
            lines.append(make_line("recurrent products", rate, unit, **fields, setting={"width": width}))
            unit = "share of processor time"
            lines.append(make_line("one step", single[width] / seconds, unit, setting={"width": width}))
    if all(name in points for name in WIDE):
        few, many = (points[name][0]["setting"] for name in WIDE)
        fields = {"peer": WIDE[0], "peer_value": few["processor_seconds"]}
        fields["ratio"] = many["processor_seconds"] / few["processor_seconds"]
        setting = {"width": few["width"], "lifetimes": [few["lifetimes"], many["lifetimes"]]}
        seconds = many["processor_seconds"]
        lines.append(make_line("four times the lifetimes", seconds, "s of processor time", **fields, setting=setting))
    return lines


def summarize(points: Mapping[str, Sequence[Line]]) -> list[Line]:
    """All lines that follow from the points."""
    curves = [name for name in CURVES if len(points.get(name, ())) >= MIN_POINTS]
    points = {name: points[name] for name in (*curves, *PARTS) if name in points}
    lines = [line for name in curves for line in describe_curve(points, name)]
    return lines + explain_fixed_parts(points) + explain_steps(points) + explain_widths(points)


def draw_chart(points: Mapping[str, Sequence[Line]], out: Path) -> None:
    """Saves the curves with the lines of their straight parts as an SVG file."""
    from ontogeny.report import charts

    panels = [("population",), ("lifetime",), ("width", "width_one_step"), ("content",)]
    colors = {"width_one_step": charts.ML_CODE}
    with charts.new_panel(8.4, 6.4) as (figure, first):
        figure.delaxes(first)
        for axes, names in zip(figure.subplots(2, 2).flat, panels, strict=True):
            charts.style_axes(axes)
            for name in (name for name in names if len(points.get(name, ())) >= MIN_POINTS):
                sizes, wall, seconds = curve_of(points, name)
                slope, color = find_straight_part(sizes, seconds), colors.get(name, charts.EVOLUTION)
                axes.loglog(sizes, [slope.seconds(size) for size in sizes], ":", color=charts.MUTED, linewidth=0.9)
                axes.loglog(slope.sizes, [slope.seconds(size) for size in slope.sizes], color=color, linewidth=1.4)
                label = f"{CURVES[name].label}: slope {slope.exponent:.2f}"
                axes.loglog(sizes, seconds, "o", color=color, markersize=4, label=label)
                axes.loglog(sizes, wall, "o", color=color, markersize=4, fillstyle="none", markeredgewidth=0.7)
            axes.set_xlabel(CURVES[names[0]].label.split(",")[0])
            axes.set_ylabel("s per lifetime" if names == ("content",) else "s per generation")
            axes.minorticks_off()
            axes.set_ylim(top=5 * axes.get_ylim()[1])  # the legend stands above the points
            axes.legend(frameon=False, loc="upper left", fontsize=8)
        svg = charts.inline_svg(
            figure, "cost", "Seconds per generation against population, lifetime, width and content."
        )
    svg = str(svg)  # as markup, it would escape the replacements
    palette = dict(zip(charts.CSS_VARIABLES.values(), COLORS, strict=True))
    for variable, color in palette.items():
        svg = svg.replace(variable, color)
    opening = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '
    out.write_text(svg.replace("<svg ", opening, 1), encoding="utf-8")


def read_lines(records: Path | None) -> list[Line]:
    """The measurements in a file; lines that follow from them are computed anew."""
    if records is None or not records.exists():
        return []
    lines = [json.loads(text) for text in records.read_text(encoding="utf-8").splitlines()]
    names = {f"cost_curves/{name}" for name in (*CURVES, *PARTS)}
    return [line for line in lines if line["name"] in names]


def write_lines(records: Path | None, lines: Iterable[Line]) -> None:
    """Replaces the content of the file, if there is one, in one operation."""
    if records is not None:
        partial = records.with_name(records.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        partial.replace(records)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures the points that are missing, prints all lines, and draws the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="JSON lines; points in it are not measured again")
    parser.add_argument("--chart", type=Path, help="SVG file")
    parser.add_argument("--curves", nargs="*", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--sizes", nargs="*", type=int, help="measure these sizes only")
    parser.add_argument("--again", action="store_true", help="measure chosen points once more; the fastest line counts")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, three points of each curve, in this process")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point:
        from ontogeny.cli.jax_setup import configure_jax

        configure_jax(None)
        print(json.dumps(measure_point(*json.loads(options.point), is_quick=False)), flush=True)
        return
    lines = read_lines(options.records)
    for name, setting in list_points(options.curves, options.quick):
        is_chosen = not options.sizes or (name in CURVES and setting[CURVES[name].factor] in options.sizes)
        if is_chosen and (options.again or combine(lines, name, setting) is None):
            line = measure_point(name, setting, True) if options.quick else measure_in_process(name, setting)
            print(json.dumps(line), flush=True)
            lines.append(line)
            write_lines(options.records, lines)
    points: dict[str, list[Line]] = {}
    for name, setting in list_points(CURVES, options.quick):
        line = combine(lines, name, setting)
        if line is not None:
            points.setdefault(name, []).append(line)
    summary = summarize(points)
    write_lines(options.records, lines + summary)
    print("".join(json.dumps(line) + "\n" for line in summary), end="", flush=True)
    if options.chart is not None:
        draw_chart(points, options.chart)


if __name__ == "__main__":
    main()
