"""Drills: what docs/reliability.md promises, tried as long as one likes. python -m experiments.reliability --help"""
