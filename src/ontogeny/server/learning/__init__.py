"""Online learning on the server: the journal, the branches of weights, the learner and the acceptance test."""
