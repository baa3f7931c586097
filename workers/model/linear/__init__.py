"""Products with fixed weights, the batch-invariant ones among them."""
