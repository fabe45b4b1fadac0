"""The mathematics of message passing: families, factors, chains, elimination.

Knows nothing of ours.
"""
