"""Devices: which axis of an array goes where, the mesh, and several processes."""
