"""`fathom push`: a finished model directory to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from fathom.core import disk
from fathom.core.errors import FathomError, UsageError


def push(directory: Path, repo: str, private: bool = False, revision: str | None = None) -> str:
    """Uploads a committed directory to the hub's `repo` (OWNER/NAME), which is made if need be; the commit's address.

    Only directories that Fathom finished and whose files are what was committed; its own seals stay behind. `revision`
    is a branch.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory; name a model directory, like DIR/model of a stage")
    if not (directory / "config.json").is_file() and (directory / "model" / "config.json").is_file():
        raise UsageError(f"{directory}: is a stage, not a model; did you mean {directory / 'model'}?")
    if not disk.is_complete(directory):
        raise UsageError(f"{directory}: has no {disk.COMPLETE}, so nothing says that it is whole; push what a stage, "
                         "or `fathom convert`, has written")
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory}: holds no config.json; name a model directory, like DIR/model of a stage")
    disk.verify(directory)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError as error:
        raise UsageError("pushing needs the package huggingface_hub; pip install 'fathom-reasoning[hub]'") from error
    if huggingface_hub.get_token() is None:
        raise UsageError("no token for the hub; set HF_TOKEN, or log in with `hf auth login`")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=directory, revision=revision, commit_message="Upload by Fathom",
            ignore_patterns=[disk.CHECKSUMS, disk.COMPLETE])
    except HFValidationError as error:
        raise UsageError(f"{repo}: no name of a repository ({str(error)[:160]}); write OWNER/NAME") from error
    except (HfHubHTTPError, OSError) as error:
        raise FathomError(f"{repo}: the hub refused or was not reached ({str(error)[:200]}); check the token's rights "
                          "and the network, and push again: what is there already is not sent twice") from error
    return str(done.commit_url)
