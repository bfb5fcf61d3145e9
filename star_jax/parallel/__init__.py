"""Devices: the mesh, and which rows and parameters lie where."""
