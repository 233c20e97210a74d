"""Warns where the outer loop has become slower beside a reference loop in the same process. One JSON line.

    python benchmarks/guard.py

The two programs of `outer_loop.py`, ours and that of the peer, alternate in this process with the same flags, on one
thread. The ratio of the medians of their processor times is compared with a stored bound. The exit code is 0 in any
case: on a machine of another kind the ratio may differ, and a warning is a reason to look, not a verdict.
"""

import json
import os
import statistics
import time

import outer_loop

MIN_RATIO = 0.7  # on an AMD EPYC with 512-bit vectors the ratio is 0.9 to 1.3
NUM_CALLS, UNITS, RANK = 7, 48, 0


def main() -> None:
    """Prints the line, and a warning where the ratio is below the bound."""
    os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"] = "cpu", outer_loop.ONE_THREAD
    started = time.perf_counter()
    programs = {"ours": outer_loop.our_side(UNITS, RANK), "peer": outer_loop.peer(UNITS, RANK)}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for call in range(NUM_CALLS + 1):
        for name, run in programs.items():
            before = time.process_time()
            run()
            if call:  # the first one compiles
                seconds[name].append(time.process_time() - before)
    num_steps = outer_loop.POPULATION * outer_loop.NUM_LIFETIMES * outer_loop.STEPS * outer_loop.GENERATIONS
    rates = {name: num_steps / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["ours"] / rates["peer"]
    line = {
        "name": "guard/outer_loop",
        "value": round(rates["ours"]),
        "unit": "agent-environment steps/s of one core's work",
        "se": None,
        "peer": "evosax + gymnax, jitted generation",
        "peer_value": round(rates["peer"]),
        "ratio": round(ratio, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "setting": outer_loop.SETTING | {"agent": f"GRU-{UNITS}", "rank": RANK, "min_ratio": MIN_RATIO},
    }
    print(json.dumps(line), flush=True)
    if ratio < MIN_RATIO:
        print(f"warning: the outer loop runs at {ratio:.2f} of the reference loop, below the bound of {MIN_RATIO}")


if __name__ == "__main__":
    main()
