"""Parts of the names of measures, which the measuring code, the verdicts and the page share; it does not import JAX."""

TIMINGS = ("before any choice", "at once", "after filler")  # of the tests of revaluation
PAIRS = ("pair", "pair in reverse")  # of links, in the order in which they are exposed
PLANNER = "planner"  # the algorithm
QUERY_COUNTS = (1, 2, 4, 8)  # about each link that is recovered from choices


def extraction_error(depth: int, num_queries: int) -> str:
    """The name of the share of links that choices do not reveal, for goals of a depth."""
    return f"extraction error, goal depth {depth}, {num_queries} queries"


def index_as(algorithm: str, layer: str) -> str:
    """The name of the index of revaluation, at once, of the choices that are predicted for an algorithm."""
    return f"as {algorithm}, {layer}, {TIMINGS[1]}"
