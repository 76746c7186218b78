"""From live state at a step boundary to a sealed snapshot in the node's memory, handed over to whoever persists it.

Law: capture, plan, copy, hand over; a copy whose source was written to meanwhile is never handed over.
"""
