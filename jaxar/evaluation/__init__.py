"""Figures of what models make, and the protocols behind them."""
