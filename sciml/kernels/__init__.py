"""Kernels: the inner loops that mixers call, each in several ways of which the fastest correct one is taken."""
