"""A model's files may come from a folder, from the hub, or from copies of the hub's files on this machine."""

import threading
from pathlib import Path
from typing import Any

import requests

SECONDS = 3.0
"""How long the hub may take to answer at all; it takes a fraction of one. Its own client tries for half a minute."""


def where(source: str, revision: str | None) -> dict[str, Any]:
    """The arguments for `from_pretrained`: the revision, and whether only files on this machine are looked at. That is
    so for a folder, offline (HF_HUB_OFFLINE) and while the hub is silent.

    Raises:
        OSError: the model is on no disk of this machine and the hub is out of reach.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    here = Path(source).is_dir()
    online = not here and not constants.is_offline_mode() and _answers(constants.ENDPOINT)
    if not here and not online:
        try:
            copy = try_to_load_from_cache(source, "config.json", revision=revision)
        except HFValidationError as error:
            raise OSError("there is no such folder, and no model on the hub has such a name.") from error
        if not isinstance(copy, str):
            raise OSError(
                "there is no such folder, no copy of such a model on this machine, and the model hub "
                f"({constants.ENDPOINT}) is out of reach."
            )
    return {"revision": revision, "local_files_only": not online}


def _answers(url: str) -> bool:
    """Whether any answer comes back in time; whom to trust is for the hub's own client to judge."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            requests.head(url, timeout=SECONDS)
        except requests.exceptions.SSLError:
            answered.append(True)
        except requests.RequestException:
            answered.append(False)
        else:
            answered.append(True)

    # In a thread, for no timeout covers the look-up of the hub's address.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return answered == [True]
