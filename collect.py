"""Collect a dataset: python collect.py task=reacher_easy quality=expert episodes=50 (options: configs/collect.yaml)."""

from envs.collect import command

if __name__ == "__main__":
    command()
