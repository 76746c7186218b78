"""The state of one rank: live objects, their tensors, and random number generators, out and in again, bit for bit."""
