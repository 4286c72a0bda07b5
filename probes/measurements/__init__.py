"""Measurements, one file each: a function from a recording (or a model) to a long table.

To add one: write `probes/measurements/<name>.py` with a function `<name>(recording) -> pd.DataFrame` that reads
`recording.sites`, `.junctions` or `.chain()` and returns `tables.table(rows)`; import it in `probes/__init__.py` and
list it in `__all__`; test it in `tests/probes/measurements/test_<name>.py`. `gradient_norms` is the shortest example.
"""
