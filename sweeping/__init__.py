"""Sweeps: grids of runs on Ray, on one machine or a cluster."""
