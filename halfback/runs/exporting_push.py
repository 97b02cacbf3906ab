"""An export goes to the Hugging Face hub, through the hub's own client."""

from pathlib import Path

from halfback.errors import UserError, first_line, of_extra


def check_name(repo: str) -> None:
    """Refuses what can be no repository's name, before anything is exported for it.

    Raises:
        UserError: says what is allowed.
    """
    with of_extra("hub"):
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: {first_line(error)}") from None


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Uploads a folder into a repository of models, which is made where it is not there.

    Args:
        folder: what is uploaded; it stays as it is, whatever happens.
        repo: `OWNER/NAME`, or a name alone for one of the token's owner.
        private: whether a new repository is for its owner alone.

    Returns:
        The address of the repository.

    Raises:
        UserError: there is no token, it isn't taken, or the hub can't be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    kept = f"{folder} is kept"
    if get_token() is None:
        raise UserError(f"--push {repo}: no token of the hub is here; `hf auth login`, or set HF_TOKEN; {kept}")
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message="Export of halfback")
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        why = "the hub refuses the token (401)" if status == 401 else first_line(error)
        raise UserError(f"--push {repo}: {why}; {kept}") from None
    except Exception as error:  # of the HTTP library that the client stands on, which has changed before
        raise UserError(f"--push {repo}: the upload failed ({first_line(error)}); {kept}") from None
    return str(made)
