"""Samplers: the walks over a plan."""
