"""One thread: models this small are slower with more, and the order of sums stays the same."""

import torch

torch.set_num_threads(1)
