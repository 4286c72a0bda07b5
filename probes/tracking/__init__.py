"""Measuring a training while it runs: `track` chooses the steps, `sinks` are where its tables go."""
