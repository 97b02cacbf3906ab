"""Differential privacy: what noise costs, and how much of it was spent."""
