"""The device side of an engine: weights, layers, attention and the tensors of the KV cache.

Only this package and `workers.engine` import torch. Nothing here knows requests, sampling or the
wire.
"""
