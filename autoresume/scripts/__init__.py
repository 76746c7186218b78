"""Trainings that commands of ours start: `doctor --canary` and `bench --profile`.

Law: scripts like any user's, which import nothing but the public face. Nothing imports them.
"""
