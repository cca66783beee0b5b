"""Decode and prompt speed over depth."""
