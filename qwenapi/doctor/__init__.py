"""`qwenapi doctor`: would a start succeed, what would fit, what to change. No torch."""
