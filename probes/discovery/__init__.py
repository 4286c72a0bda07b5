"""Finding junctions: `adds` intercepts a model's adds, `graph` walks autograd's graph, `classify` decides which adds
are residual junctions, `junctions` puts the three together."""
