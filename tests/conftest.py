"""Every test begins with the same random state, on one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_seed_one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
