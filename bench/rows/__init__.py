"""Benchmark rows: fields, files, tables, comparison."""
