"""Random-weight models of other architectures, for speed comparisons."""
