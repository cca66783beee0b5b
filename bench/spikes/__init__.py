"""Spikes: statistics, rasters, sweeps of k, speed, tuning reports."""
