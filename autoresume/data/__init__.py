"""Where a training stands in its data: loaders, samplers and ranges that go on where they were.

Law: a position counts what the loop consumed, never what workers fetched ahead.
"""
