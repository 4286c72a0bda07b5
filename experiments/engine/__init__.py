"""What the experiments share: data, training, the grid of runs, statistics, the command line."""
