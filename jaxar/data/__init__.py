"""Records, their transforms and the loader: a batch is a pure function of the training step."""
