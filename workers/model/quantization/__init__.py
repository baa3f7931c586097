"""Weights of fewer bits: FP8, AWQ and GPTQ checkpoints, how they are read and held."""
