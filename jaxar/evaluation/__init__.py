"""Evaluations: parts that measure a model, and the figures and protocols behind them."""
