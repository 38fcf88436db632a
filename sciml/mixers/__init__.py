"""Mixers: maps ``(B, *lattice, C) → (B, *lattice, C)`` that move information along axes. One contract, many kernels.

A mixer is a module file here whose ``PLUGIN`` is a `sciml.mixers.contract.Mixer`. Its weights never depend on the rank
of the lattice, so one set serves 1-D, 2-D, 3-D and set-shaped data.
"""
