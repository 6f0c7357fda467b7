"""What tests of functions in C share."""

import shutil

import pytest
import torch

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def with_threads(count, function):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)
