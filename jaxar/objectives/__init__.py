"""Losses of models that are not next-X models, such as autoencoders."""
