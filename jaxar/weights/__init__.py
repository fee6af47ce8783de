"""Weights files, read without PyTorch, and their conversion to our parameters."""
