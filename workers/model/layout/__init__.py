"""Layouts that kernels and the rest share: a flat batch, its plan, int4 words, e4m3, copies."""
