"""The three stages of a life in use: training, evaluation, deployment; and the checkpoints between them."""
