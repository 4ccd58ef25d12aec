"""Monitoring of rounds: statistics, a live view, Prometheus counters and plots."""
