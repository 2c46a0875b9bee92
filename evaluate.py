"""Evaluate a pipeline in closed loop: python evaluate.py pipeline=results/cartpole_swingup-mixed/pipeline

Options: configs/evaluate.yaml. Settings of the sampler that are not given are those saved with the pipeline.
"""

from evaluation.command import main

if __name__ == "__main__":
    main()
