"""Hugging Face's model hub, for ``dsrl export --push_to_hub``."""

from __future__ import annotations

from pathlib import Path

from dsrl_offpolicy.errors import InputError, one_line
from dsrl_offpolicy.registry import not_installed


class Hub:
    """The repository of a model on the hub that huggingface_hub's variables name (``HF_ENDPOINT``, ``HF_TOKEN``).

    Args:
        repository: ``OWNER/NAME``.

    Raises:
        InputError: a name that no repository can have, or huggingface_hub is not installed.
    """

    def __init__(self, repository: str) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ImportError as error:
            raise InputError(f"--push_to_hub: {not_installed(error)}") from error
        self._api, self._repository = huggingface_hub.HfApi(), repository
        try:
            utils.validate_repo_id(repository)
        except errors.HFValidationError as error:
            raise InputError(f"--push_to_hub: expected OWNER/NAME, got {repository!r}") from error

    def push(self, folder: Path) -> str:
        """Upload every file of a folder in one commit; a repository that is new is private. Returns its address.

        Raises:
            InputError: the hub does not answer, or refuses; the folder stays as it is.
        """
        try:
            self._api.create_repo(self._repository, private=True, exist_ok=True)
            self._api.upload_folder(
                repo_id=self._repository, folder_path=folder, commit_message="A latent policy by dsrl export"
            )
        except Exception as error:  # of huggingface_hub, and of the library of HTTP that its version has
            raise InputError(
                f"--push_to_hub: {self._repository} was not uploaded ({one_line(error)}); {folder} is whole, "
                f"`hf upload {self._repository} {folder}` uploads it once the hub can be reached with a token"
            ) from error
        return f"{self._api.endpoint}/{self._repository}"
