"""One thread: tiny models are faster so, and tests do not disturb one another."""

import torch

torch.set_num_threads(1)
