"""Weights files, read without PyTorch, and the engine that brings them to our parameters."""
