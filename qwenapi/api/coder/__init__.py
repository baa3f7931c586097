"""The interface of "Qwen-Coder 代码生成接口": form posts, raw text streams, conversations."""

from qwenapi.api.coder.views import blueprint

__all__ = ["blueprint"]
