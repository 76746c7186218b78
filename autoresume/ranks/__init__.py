"""The ranks of one training: what they agree on, and the order in which DDP adds up their gradients.

Law: the only room with collectives of our own (agreement.py), on a group of our own.
"""
