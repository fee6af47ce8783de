"""Layers that any network of the project can use, and the only place that knows Flax well."""
