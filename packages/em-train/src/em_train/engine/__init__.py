"""How a run is run, whatever it learns: processes, numbers, weights, checkpoints, folders, signals."""
