"""Pair biases: an additive attention term from the coordinates of two tokens, in place of rotary positions."""
