"""Benchmark rows: fields, files, comparison."""
