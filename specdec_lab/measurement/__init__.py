"""Measuring: what a step costs on this machine, and contenders side by side."""
