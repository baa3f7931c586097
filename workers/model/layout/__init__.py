"""Layouts that kernels and the rest share: a step's plan, a packed batch, int4 words, copies."""
