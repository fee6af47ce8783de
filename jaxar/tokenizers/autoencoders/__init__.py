"""Autoencoders whose latents are modelled, and the tables of their released weights."""
