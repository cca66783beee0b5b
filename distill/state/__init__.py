"""The state of a training run: checkpoints, record, progress."""
