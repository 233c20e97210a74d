"""Does revaluation hold in a chain of four links, which no training family contains? Each alone, and pairs of them.

Supporting. The deciding test `plans`, its rule and its thresholds, over one link more: who has come to know by heart
how three links answer has nothing to go by. Policy revaluation (a better choice further on becomes
known; Momennejad et al. 2017) cannot be asked here, because further on in a chain no action matters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ontogeny import plugins
from ontogeny.audit.base import Finding, Test, predicted

LINKS = 4
PREDICTED = predicted(
    "planner dyna",
    "td_zero td_lambda td_one successor mimic_learning mimic_frozen reward_as_cue win_stay "
    "memoryless clockwork perseverator side_biased",
)


def build(*, num_lifetimes: int = 50) -> Test:
    of_three = plugins.build("audit", "plans", links=LINKS)
    return Test(
        "plans",
        False,
        num_lifetimes,
        of_three.measure,
        lambda found, thresholds: judged(of_three, found, thresholds),
        of_three.thresholds,
        PREDICTED,
    )


def judged(of_three: Test, found: Mapping[str, np.ndarray], thresholds: Any) -> Finding:
    finding = of_three.judge(found, thresholds)
    return finding._replace(test="longer", deciding=False, told=f"in a chain of four links, {finding.told}")
