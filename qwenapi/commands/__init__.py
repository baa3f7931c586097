"""Commands of `qwenapi` that start no service; `serve`, `http` and `model` are in cli.py."""
