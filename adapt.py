"""Adapt a pipeline to a changed robot: python adapt.py pipeline=results/RUN/pipeline dataset=play.npz

Options: configs/adapt.yaml. What it does: docs/adapt.md.
"""

from evaluation.adapt import main

if __name__ == "__main__":
    main()
