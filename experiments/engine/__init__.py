"""What the experiments share: data, training, the grid of cells, statistics, the command line."""
