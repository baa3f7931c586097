"""Tensor layouts that kernels and their callers share: flat batch, plan, int4, FP8; and copies."""
