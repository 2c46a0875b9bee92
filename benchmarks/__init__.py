"""Benchmarks: what each part costs, beside the limit of this machine; each module is a command."""
