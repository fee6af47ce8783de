"""Backbones: the networks that see the past, one file for each published system."""
