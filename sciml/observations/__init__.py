"""How an image was measured: linear operators with an adjoint. One module per kind, found by name."""
