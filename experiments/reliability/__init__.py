"""Drills: long checks of what docs/reliability.md promises. python -m experiments.reliability --help"""
