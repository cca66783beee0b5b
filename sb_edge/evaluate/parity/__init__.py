"""Engine against reference: logits and spike counts."""
