"""Training: state, optimiser, the one jitted step and the loop around it."""
