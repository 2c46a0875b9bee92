"""Collect a dataset: python collect.py task=reacher_easy quality=expert episodes=50 (options: configs/collect.yaml)."""

from envs.collect_command import main

if __name__ == "__main__":
    main()
