"""The sizes that every network has in common."""


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for a number of channels, features or classes under 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} {size}: give at least 1")
