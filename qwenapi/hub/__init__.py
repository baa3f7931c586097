"""Models from a hub: fetched into the hub's own cache before anything else starts."""
