"""Every test begins with the same random state, on one thread; notebooks are slow tests."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks cannot mark themselves."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_seed_one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
