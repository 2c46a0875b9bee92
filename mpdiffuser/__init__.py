"""Control by model-predictive diffusion."""
