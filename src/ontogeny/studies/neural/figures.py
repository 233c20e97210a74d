"""Charts of the neural study: learning curves by environment step, and pictures of a few steps of one lifetime.

They read records and groups of records; they compute nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ontogeny.report.charts import (
    BASELINE,
    EVOLUTION,
    INK,
    ML_CODE,
    MUTED,
    RULE,
    inline_svg,
    new_panel,
    style_axes,
)
from ontogeny.report.formatting import format_number

MAX_FRAME_SIZE = 20  # cells along each side of a drawn observation
MAX_NUMBERS = 4  # of a vector
MIN_OPACITY = 0.04  # of a drawn cell
NO_LINE: Any = (0, (1, 0))
STYLES: dict[str, tuple[str, Any]] = {  # by learner: color and dashes
    "neural_model_based": (ML_CODE, NO_LINE),
    "neural_model_based:ablation=no_imagination": (ML_CODE, (0, (4, 2))),
    "evolved:recurrent": (EVOLUTION, NO_LINE),
    "ppo": (INK, NO_LINE),
    "dqn": (INK, (0, (4, 2))),
    "random": (BASELINE, (0, (1, 1.5))),
}


class LearnerCurve(NamedTuple):
    """The learning curve of a learner.

    Attributes:
        learner: Determines color and dashes.
        label: At the end of the curve.
        num_steps: Environment steps of the whole curve.
        points: Mean with interval by equal part of the steps; None where there is no episode.
    """

    learner: str
    label: str
    num_steps: int
    points: Sequence[tuple[float, float, float] | None]


def draw_learning_curves(name: str, curves: Sequence[LearnerCurve], aim: float) -> Markup:
    """Draw mean returns by environment step, on a logarithmic axis, with 95 % intervals over seeds.

    Args:
        name: Prefix of the element ids, unique on the page.
        curves: One per learner.
        aim: A dashed line.
    """
    with new_panel(6.8, 3.9) as (figure, axes):
        axes.axhline(aim, color=INK, lw=0.8, ls=(0, (3, 2)))
        axes.set_xscale("log")
        visible = [point for curve in curves for point in curve.points if point is not None]
        means = [point[0] for point in visible] or [0.0]
        low, high = min(*means, aim), max(*means, aim)
        margin = 0.08 * (high - low or 1.0)
        ends = []
        for curve in curves:
            color, dashes = STYLES.get(curve.learner, (ML_CODE, (0, (1, 1))))
            width = curve.num_steps / len(curve.points)
            points = [((i + 0.5) * width, *point) for i, point in enumerate(curve.points) if point is not None]
            if not points:
                continue
            steps, mean, lower, upper = (np.array(part) for part in zip(*points, strict=True))
            axes.fill_between(
                steps, np.clip(lower, low - margin, None), np.clip(upper, None, high + margin),
                color=color, alpha=0.13, lw=0,
            )  # fmt: skip
            axes.plot(steps, mean, color=color, lw=1.8, ls=dashes, solid_capstyle="round", label=curve.label)
            axes.plot(steps[-1:], mean[-1:], "o", ms=3.5, color=color, mec=color)
            ends.append(f"{curve.label} {format_number(float(mean[-1]))}")
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("return per episode")
        axes.tick_params(which="minor", length=0)
        if ends:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handlelength=2.4)
        return inline_svg(figure, name, f"Return per episode by environment step. At the end: {'; '.join(ends)}")


def draw_picture(name: str, picture: Mapping[str, Any]) -> Markup:
    """Draw a few steps of a lifetime: observations, predictions, uncertainty, expected rewards and actions.

    Args:
        name: Prefix of the element ids, unique on the page.
        picture: From `pictures.draw_up`.
    """
    observation = np.array(picture["observation"], float)
    is_vector = observation.ndim == 2
    L = len(picture["action"])
    rows = 3 if not is_vector else min(MAX_NUMBERS, observation.shape[1])
    heights = [1.15 if not is_vector else 0.8] * rows + [0.75, 0.75, 0.75]
    with new_panel(6.8, 0.35 + 0.92 * sum(heights)) as (figure, placeholder):
        placeholder.remove()
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        panels = [style_axes(figure.add_subplot(grid[i])) for i in range(len(heights))]
        draw = _draw_numbers if is_vector else _draw_frames
        draw(figure, panels[:rows], observation, picture)
        _draw_uncertainty(panels[rows], picture)
        _draw_rewards(panels[rows + 1], picture)
        _draw_actions(panels[rows + 2], picture)
        for axes in panels:
            axes.set_xlim(-0.6, L - 0.4)
            axes.set_xticks([])
            axes.yaxis.label.set(rotation=0, ha="right", va="center", fontsize=8.5)
        panels[-1].set_xticks(range(L))
        panels[-1].set_xlabel("step of the episode")
        figure.align_ylabels(panels)
        total = sum(picture["reward"])
        label = f"{L} steps, actions {', '.join(map(str, picture['action']))}, reward {format_number(total)} in all"
        return inline_svg(figure, name, label)


def _draw_frames(figure: Figure, panels: Sequence[Axes], observation: np.ndarray, picture: Mapping[str, Any]) -> None:
    """Observations as images: observed, predicted one step before, imagined from the first step on."""
    del figure
    shape = observation.shape[1:]
    if not shape:  # whole numbers: the model predicts the probability of each
        size = np.array(picture["predicted"], float).shape[-1]
        observation, shape = np.eye(size)[observation.astype(int)], (size, 1)
    observed = observation.reshape(len(observation), *shape)
    predicted = np.array(picture["predicted"], float).reshape(-1, *shape)
    imagined = np.array(picture["imagined"], float).reshape(-1, *shape)
    low, high = float(observed.min()), float(observed.max())
    titles = ("observed", "predicted\none step before", "imagined from\nstep 0 on")
    for axes, title, frames, first, color in zip(
        panels, titles, (observed, predicted, imagined), (0, 1, 1), (INK, ML_CODE, ML_CODE), strict=True
    ):
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        axes.set_ylabel(title)
        for number, frame in enumerate(frames):
            _draw_frame(axes, number + first, (frame - low) / (high - low or 1.0), color)


def _draw_frame(axes: Axes, position: int, frame: np.ndarray, color: str) -> None:
    """One image as cells whose opacity is their value; channels are drawn over each other."""
    image = frame.max(axis=-1) if frame.ndim == 3 else frame.reshape(frame.shape[0], -1)
    stride = -(-max(image.shape) // MAX_FRAME_SIZE)
    image = image[::stride, ::stride]
    height, width = 1 / image.shape[0], 0.8 / image.shape[1]
    left = position - 0.4
    axes.add_patch(Rectangle((left, 0), 0.8, 1, fill=False, ec=RULE, lw=0.6))
    for row, column in zip(*np.nonzero(image > MIN_OPACITY), strict=True):
        corner = (left + column * width, 1 - (row + 1) * height)
        opacity = round(float(min(image[row, column], 1.0)), 2)
        axes.add_patch(Rectangle(corner, width, height, fc=color, lw=0, alpha=opacity))


def _draw_numbers(figure: Figure, panels: Sequence[Axes], observation: np.ndarray, picture: Mapping[str, Any]) -> None:
    """The numbers of a vector that vary most: observed, predicted one step before, imagined with its deviation."""
    del figure
    predicted, imagined = np.array(picture["predicted"], float), np.array(picture["imagined"], float)
    spread = np.array(picture["imagined_spread"], float)
    chosen = np.sort(np.argsort(-observation.var(axis=0), kind="stable")[: len(panels)])
    steps = np.arange(1, len(observation))
    for axes, number in zip(panels, chosen, strict=True):
        mean, deviation = imagined[:, number], spread[:, number]
        axes.fill_between(steps, mean - deviation, mean + deviation, color=ML_CODE, alpha=0.18, lw=0)
        axes.plot(steps, mean, color=ML_CODE, lw=1.2)
        axes.plot(steps, predicted[:, number], "D", ms=3.2, color=ML_CODE, mfc="none")
        axes.plot(range(len(observation)), observation[:, number], "o", ms=2.8, color=INK, mec=INK)
        axes.set_ylabel(f"number {number}")
        axes.locator_params(axis="y", nbins=3)


def _draw_uncertainty(axes: Axes, picture: Mapping[str, Any]) -> None:
    """Standard deviations of predicted observations, one step ahead and imagined from the first step on."""
    steps = range(1, len(picture["action"]))
    axes.bar([step - 0.16 for step in steps], picture["predicted_spread"], width=0.28, color=ML_CODE)
    axes.bar([step + 0.16 for step in steps], picture["imagined_total_spread"], width=0.28, color=ML_CODE, alpha=0.35)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("uncertainty")
    axes.locator_params(axis="y", nbins=3)


def _draw_rewards(axes: Axes, picture: Mapping[str, Any]) -> None:
    """Rewards that followed each action, those expected one step before, and those imagined from the first step on."""
    steps = range(len(picture["action"]))
    axes.axhline(0, color=RULE, lw=0.8)
    axes.plot(steps, picture["imagined_reward"], color=ML_CODE, lw=1.0, alpha=0.6)
    axes.plot(steps, picture["expected_reward"], "D", ms=4.4, color=ML_CODE, mfc="none", ls="")
    axes.plot(steps, picture["reward"], "o", ms=3, color=INK, mec=INK, ls="")
    axes.margins(y=0.2)
    axes.set_ylabel("reward")
    axes.locator_params(axis="y", nbins=3)


def _draw_actions(axes: Axes, picture: Mapping[str, Any]) -> None:
    """The probability with which the agent chose each action, and the number of the action."""
    steps = range(len(picture["action"]))
    axes.bar(steps, picture["probability"], width=0.6, color=BASELINE, alpha=0.5)
    axes.set_ylim(0, 1.35)
    axes.set_yticks([0, 1])
    axes.set_ylabel("action and its\nprobability")
    for step, action, probability in zip(steps, picture["action"], picture["probability"], strict=True):
        axes.text(step, probability + 0.06, str(action), ha="center", va="bottom", fontsize=8.5, color=MUTED)
