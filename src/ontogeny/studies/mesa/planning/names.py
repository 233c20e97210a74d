"""Parts of the names of measures, which the measuring code, the verdicts and the page share; it does not import JAX."""

TIMINGS = ("before any choice", "at once", "after filler")  # of the tests of revaluation
PAIRS = ("pair", "pair in reverse")  # of links, in the order in which they are exposed
QUERY_COUNTS = (1, 2, 4, 8, 16)  # of the identification of links
