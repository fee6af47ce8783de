"""Conversion of released weights: an engine and one table for each family of checkpoints."""
