"""Tokenizers: from the records of a data set to a grid of latents, and back."""
