"""Experiments: each a command, minutes on a CPU, with its figure and table in docs/."""
