"""Tuning k, the number of spikes, for each coded input."""
