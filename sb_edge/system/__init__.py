"""The machine: processors, control groups, its state while something is measured."""
