"""Predicts with the latent state-space model of `neural_model_based`, which also learns to predict its own inputs."""

from ontogeny.content import latent_sequences
from ontogeny.content.base import Predictor

KEY_NUMBER = 5  # in the random keys of the mesa study, which trains contents in this order


def build(
    num_inputs: int,
    num_outputs: int = 1,
    *,
    width: int = 8,
    learning_rate: float = 0.005,
    outputs: str = "binary",
) -> Predictor:
    """Builds the predictor.

    Args:
        num_inputs: Inputs per step.
        num_outputs: Predicted quantities per step, or classes of the one predicted quantity.
        width: Size of every layer, at least 8.
        learning_rate: Initial step size of Adam; it falls to zero along a cosine until the last update.
        outputs: `binary` for K binary quantities, `categorical` for the K classes of one quantity.

    Raises:
        BadInput: If the width is below 8, or there are no outputs of this name.
    """
    return latent_sequences.sequence_predictor(num_inputs, num_outputs, width, learning_rate, outputs)
