"""Evaluation: perplexity, questions, passkeys, spike statistics, energy estimate, parity."""
