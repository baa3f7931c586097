"""Commands of `qwenapi` that start no service of their own."""
