"""Parity of engine and reference: logits, layer outputs, spike counts, greedy text."""
