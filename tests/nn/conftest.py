"""Settings shared by the tests of `residmix.nn`."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_configure(config):
    # Checkpointing in torch 2.4 uses a name that torch 2.4 deprecates.
    config.addinivalue_line("filterwarnings", "ignore:.torch.cpu.amp.autocast:FutureWarning")
