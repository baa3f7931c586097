"""The HTTP half's side of the wire: finds engines, asks them, and asks again when one is lost."""
