"""Tensor layouts that kernels and their callers share: batches, plans, int4 and FP8 weights."""
