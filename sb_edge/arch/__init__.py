"""The architecture: configuration, tensor table, spike and sparse plans, spike coding."""

ARCH = "spikingbrain"
"""`general.architecture` of every GGUF that this project writes; permanent."""
