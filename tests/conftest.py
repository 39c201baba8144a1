"""Before anything else: one thread, and threads that sleep while they wait. forcing must not be imported here yet,
because the plugin that checks shapes has not had its turn."""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def double():
    """float64 wherever a dtype is not given: for rollouts, whose noise has torch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
