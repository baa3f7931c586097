"""Attention over a paged KV cache, and the tensors that hold it."""
