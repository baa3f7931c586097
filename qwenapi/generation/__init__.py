"""One caller's generation: sampling parameters, tokens in, text out, and callers who leave."""
