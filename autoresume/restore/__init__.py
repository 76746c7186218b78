"""What a run begins from when it does not begin from scratch, from which sources, and what has changed since.

Law: nothing of another run, or of somebody else's file, is ever written, moved or run as code.
"""
