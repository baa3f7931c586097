"""Tensor parallelism: the ranks of one engine, what they tell each other, and their shares."""
