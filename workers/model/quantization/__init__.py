"""Weights of fewer bits: FP8, AWQ, GPTQ and compressed-tensors, how they are read and held."""
