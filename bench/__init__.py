"""Benchmarks of speed, spikes and sparse products, and their reports; imported as sb_edge.bench."""

if __name__ != "sb_edge.bench":
    raise ImportError(
        "import this package as sb_edge.bench (it is the folder bench/ of the repository, mapped there)"
    )
