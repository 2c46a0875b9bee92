"""Readers of others' file formats: each gives `Episodes`."""
