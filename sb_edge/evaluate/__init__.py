"""Quality of a model: perplexity, questions, passkeys, spike statistics, parity."""
