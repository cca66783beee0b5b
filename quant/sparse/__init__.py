"""Sparse layouts: dead zones, neuron order, columns."""
