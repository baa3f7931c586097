"""A caller's generation, above text: prompt and parameters in, text out; callers who leave."""
