"""One thread, and the model room's made models within reach."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "model"))
torch.set_num_threads(1)
