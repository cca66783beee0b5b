"""Decode and prompt speed over context depth."""
