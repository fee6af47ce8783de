"""Autoencoders that provide the latents, and the tables of their released weights."""
