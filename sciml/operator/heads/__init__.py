"""Heads: tokens of the finest level → what a domain asked for. One module per kind."""
