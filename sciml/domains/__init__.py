"""The domains: one package each, independent of one another and of the operator."""
