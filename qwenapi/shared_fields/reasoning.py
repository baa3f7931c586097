"""The words for how much effort a model makes of thinking, and whether it thinks at all."""

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def effort_thinks(effort: str) -> bool:
    """Return whether a model is to think; how long it does, it was trained to."""
    return effort not in ("none", "minimal")
