"""Quantizers: from vectors to codes and back."""
