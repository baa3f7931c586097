"""`qwenapi bench`: a server or an engine under load, or two servers in turns, also as a plot."""
