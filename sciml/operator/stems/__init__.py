"""Stems: a TokenBatch's values and lattice conditions → tokens of the finest level."""
