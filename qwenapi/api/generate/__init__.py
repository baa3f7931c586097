"""The interface of "Qwen2-7B-Instruct 模型 API", profile `qwen2`: the address `POST /generate`."""

from qwenapi.api.generate.views import blueprint

__all__ = ["blueprint"]
