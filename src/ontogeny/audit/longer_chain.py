"""Tests whether the planning result holds in a chain of four links, which no training environment contains.

Secondary. The primary test `plans` with its rule and thresholds, over one more link: an agent that has memorized how to
respond to changes of three links cannot apply it. Policy revaluation (a better action becomes known further on;
Momennejad et al. 2017) cannot be tested here, because actions matter only at the start of a chain.
"""

from ontogeny import plugins
from ontogeny.audit.base import AuditTest, expected_results
from ontogeny.audit.decisions import AuditResult, Measurements, Thresholds

NUM_LINKS = 4
EXPECTED = expected_results(
    positive="planner dyna",
    negative="td_zero td_lambda td_one successor latent_state_learner latent_state_fixed reward_as_cue win_stay "
    "memoryless open_loop perseverator side_biased",
)


def build(*, num_lifetimes: int = 100) -> AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit and condition.
    """
    plans = plugins.build("audit", "plans", num_links=NUM_LINKS, env="chain")

    def decide(measurements: Measurements, thresholds: Thresholds) -> AuditResult:
        result = plans.decide(measurements, thresholds)
        summary = f"in a chain of four links, {result.summary}"
        return result._replace(test="longer_chain", primary=False, summary=summary)

    return AuditTest("longer_chain", "plans", False, num_lifetimes, plans.measure, decide, plans.thresholds, EXPECTED)
