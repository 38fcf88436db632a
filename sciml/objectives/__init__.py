"""Training objectives: small functions ``objective(outputs, batch) → (S,)`` loss per segment, found by name."""
