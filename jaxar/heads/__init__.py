"""Heads: what a backbone is asked about the next entity, in training and in sampling."""
