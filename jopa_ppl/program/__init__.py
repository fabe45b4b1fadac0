"""A program run once: its sites, their parameters and what these depend on, carries unrolled."""
