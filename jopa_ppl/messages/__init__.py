"""The mathematics of message passing: families, factors, chains and elimination."""
