"""Schedules, sweeps and planning over the messages."""
