"""Contracts that every part shares: plans of entities and randomness. No Flax here."""
