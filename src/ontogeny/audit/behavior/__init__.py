"""Analysis of logged choices: stay probabilities and their regression, and choice models by maximum likelihood."""
