"""What a machine, its memory and a run directory mean for a run that is preempted. Imports no torch.

Law: each module looks at one thing with a real, small try where there is one, leaves nothing behind, and returns
findings; what is judged from numbers alone is a pure function.
"""
