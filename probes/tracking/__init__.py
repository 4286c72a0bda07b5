"""Measuring a training while it runs: `track` measures and writes, `steps` counts, `forwards` listens to the model.

`sinks` are where the tables go.
"""
