"""`qwenapi doctor`: would a start succeed, what would fit, what to change; said before anything is
loaded. Never imports torch.
"""
