"""Batches: many requests in one file, in OpenAI's format, answered a line each."""
