"""Compute normalization statistics exactly, store their provenance, and check them."""
