"""A run in a training script: the handle that the script talks to (handle.py), and what is behind it.

Law: only this room knows all of a run at once. What happens at a step boundary is decided in life.py.
"""
