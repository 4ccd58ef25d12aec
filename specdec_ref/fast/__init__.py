"""Faster steps: recorded steps, packed weights and CUDA graphs. None of them is part of the method.

`steps.choose_runner` is the entry point. Without this folder all results would be the same, and
slower.
"""
