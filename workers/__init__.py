"""The model half: engine processes that take and give token ids, and what supervises them.

Imports neither qwenapi, flask, gevent nor marshmallow; torch only in `engine/` and `model/`.
"""
