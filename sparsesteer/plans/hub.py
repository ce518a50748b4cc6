"""Plans on the Hugging Face Hub: one safetensors file and a card, never anything that is executed."""

import os
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sparsesteer.plans.cards import card
from sparsesteer.plans.plan import SteeringPlan

PLAN_FILE = "plan.safetensors"
_LOG_IN = "log in with `hf auth login`, or give token="


def push_plan(
    plan: SteeringPlan,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
) -> str:
    """Put a plan and its card into a repository, which is made if there is none; returns the commit's address.

    Raises:
        ValueError: a name that no repository can have.
        PermissionError: not logged in, or no right to write there.
        OSError: the Hub does not answer, or refuses.
    """
    if token is None and get_token() is None:
        raise PermissionError(f"pushing to {repo_id} needs a token of the Hugging Face Hub: {_LOG_IN}")
    api = HfApi(token=token, library_name="sparsesteer")
    with tempfile.TemporaryDirectory() as folder:
        file = plan.save(Path(folder) / PLAN_FILE)
        additions = [
            CommitOperationAdd(PLAN_FILE, str(file)),
            CommitOperationAdd("README.md", card(plan, repo_id).encode()),
        ]
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.create_commit(
                repo_id, additions, commit_message=commit_message, revision=revision, create_pr=create_pr
            )
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise PermissionError(f"the Hub does not let this token write to {repo_id}: {error}") from error
            raise
        except HTTPError as error:  # the base class of the HTTP library's own errors
            raise ConnectionError(f"the Hub was not reached: {error}") from error
    return commit.commit_url


def plan_file(
    repo_id_or_path: str | os.PathLike,
    *,
    revision: str | None,
    token: str | None,
    cache_dir: str | os.PathLike | None,
    local_files_only: bool,
) -> Path:
    """The file of a plan: itself, in a folder, or downloaded from a repository into the Hub's cache.

    Raises:
        FileNotFoundError: no such repository, revision or folder, or there is no plan in it.
    """
    path = Path(repo_id_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / PLAN_FILE).is_file():
            raise FileNotFoundError(f"{path} has no {PLAN_FILE}")
        return path / PLAN_FILE
    repo_id = str(repo_id_or_path)
    try:
        downloaded = hf_hub_download(
            repo_id,
            PLAN_FILE,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            library_name="sparsesteer",
        )
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id} is no file or folder, and no repository can be called so") from error
    except GatedRepoError as error:
        raise FileNotFoundError(f"{repo_id} is gated: ask for access on its page, then {_LOG_IN}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"the Hub has no repository {repo_id}, or it is private: {_LOG_IN}") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{PLAN_FILE} of {repo_id} is not in the cache, and the Hub was not reached") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} holds no steering plan: it has no {PLAN_FILE}") from error
    return Path(downloaded)
