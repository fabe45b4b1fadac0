"""What a run is looked at with: marginals, draws, densities, predictions, ArviZ, files."""
