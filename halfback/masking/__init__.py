"""Sums of what clients say of which nobody learns more than the sum: secure aggregation."""
