"""Self-tests: context fill, memory forecast, conversion speed."""
