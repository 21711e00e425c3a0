"""Normalization statistics: computed exactly, stored with their provenance, checked before training."""
