"""Losses that are not a scheme's: what is trained is no next-X model."""
