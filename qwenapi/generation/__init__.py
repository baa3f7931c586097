"""One caller's generation: prompt and parameters in, text out, and callers who leave."""
