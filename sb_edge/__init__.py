"""SpikingBrain language models on ordinary CPUs: convert, run, chat, measure."""

__version__ = "0.1.0"
