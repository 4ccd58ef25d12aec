"""Measurements: costs of steps, comparisons of ways to decode, memory, and the diagnosis of a pair."""
