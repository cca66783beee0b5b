"""The architecture: configuration, tensor table, spike and sparse plans, spike coding."""
