"""Pictures that callers send: fetched, decoded within limits, and brought to the model's size."""
