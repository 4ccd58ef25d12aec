"""Watching rounds as they pass: statistics, a live view, Prometheus counters and plots."""
