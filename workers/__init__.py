"""The model server: processes that speak tokens.

Nothing in this package imports qwenapi, flask, gevent or marshmallow; only `engine/` and `model/`
import torch.
"""
