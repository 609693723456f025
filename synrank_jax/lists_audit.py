"""Audit of graded lists (under way)."""
