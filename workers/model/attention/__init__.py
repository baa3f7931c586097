"""Attention over paged keys and values, and the tensors that hold them."""
