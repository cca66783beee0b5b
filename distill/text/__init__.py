"""Training text: sources, sampling, decontamination, token files."""
