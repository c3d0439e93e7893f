"""Makes the room's own helper modules importable, and the model room's made models."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent.parent / "model")]
