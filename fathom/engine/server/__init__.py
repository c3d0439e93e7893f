"""The server: a model over HTTP, in the forms that OpenAI's clients speak. `serve` is what `fathom serve` runs.

Importing this loads neither a tensor library nor a web framework.
"""

from fathom.engine.server.run import serve
from fathom.engine.server.settings import ServerSettings

__all__ = ["ServerSettings", "serve"]
