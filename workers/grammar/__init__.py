"""Grammars: from a caller's text to the tokens that may follow, by llguidance. Torch-free."""
