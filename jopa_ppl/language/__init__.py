"""What a program is written in: sites and scans, data and what is missing of them, queries,
networks, and running a program with the sites set. Knows nothing of inference.
"""
