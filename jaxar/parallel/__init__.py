"""Devices: the mesh, the sharding of array axes over it, and several processes."""
