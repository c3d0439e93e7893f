"""A model directory: save, load, convert; Hugging Face's names and others; configs of every family; FP8 blocks.

`header` is the file format, `names` and `configs` say what names and settings mean, `stored` reads a checkpoint,
`streamed` runs one without holding it, `directory` puts them together, `conversion` and `hub` are verbs.
"""

from fathom.model.weights.configs import hugging_face_config
from fathom.model.weights.conversion import convert
from fathom.model.weights.directory import load, read_config, resolve, save
from fathom.model.weights.header import Entry, write_stream
from fathom.model.weights.hub import push
from fathom.model.weights.names import outward
from fathom.model.weights.stored import WEIGHTS, Stored

__all__ = ["WEIGHTS", "Entry", "Stored", "convert", "hugging_face_config", "load", "outward", "push", "read_config",
           "resolve", "save", "write_stream"]
