"""`autoresume drill`: does a script really resume? It is interrupted on purpose, and compared with itself undisturbed.

Law: what decides is pure (schedule, compare, causes), and reads records that the ranks write (recorder.py).
The driver starts lives and ends them as the schedule says; nothing here imports torch.
"""
