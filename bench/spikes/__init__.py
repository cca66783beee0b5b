"""Spike statistics, rasters, sweeps and speed."""
