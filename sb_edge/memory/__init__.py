"""Memory that a model needs, and the check before it is loaded."""
