"""The model half: engine processes that take and give token ids, and what supervises them.

Nothing in this package imports qwenapi, flask, gevent or marshmallow; only `engine/` and `model/`
import torch.
"""
