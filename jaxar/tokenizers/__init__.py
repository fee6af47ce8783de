"""Tokenizers: from what a data set holds to a grid of latents, and back."""
