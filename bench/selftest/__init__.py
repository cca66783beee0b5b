"""Checks of the benchmark itself: context fill, memory forecast, conversion speed."""
