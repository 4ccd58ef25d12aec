"""What makes a step quick and is no part of the method: recorded steps, packed weights, CUDA
graphs.

`steps.choose_runner` is the one door. Without this folder everything would still be right, and
slower.
"""
