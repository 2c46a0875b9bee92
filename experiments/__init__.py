"""Experiments: each is a command that takes minutes on a CPU and writes a page and a figure of docs/."""
