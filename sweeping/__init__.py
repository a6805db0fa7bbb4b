"""Sweeps: grids of runs on this machine, or on a Ray cluster."""
