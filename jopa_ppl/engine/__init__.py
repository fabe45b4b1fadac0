"""What runs: evidence, reach, energy, beliefs, sweeps, plans, what is not inferred completed, and
the faults that a run can have.
"""
