"""Text in, text out: templates, tokens, stops, strict JSON. Knows no Flask, socket or engine."""
