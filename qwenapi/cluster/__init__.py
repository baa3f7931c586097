"""Engines on other machines: placed by Ray, supervised and found as those here are."""
