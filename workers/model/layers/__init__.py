"""The layers of a Qwen decoder over their weights."""
