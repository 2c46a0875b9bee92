"""Readers of other projects' file formats; each returns `Episodes`."""
