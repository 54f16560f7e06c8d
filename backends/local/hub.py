"""Whether the model hub answers: where it does not, its own client would try again for half a minute."""

import threading
from pathlib import Path

import requests

SECONDS = 3.0
"""How long the hub may take to answer at all; it takes a fraction of one."""


def within_reach(source: str) -> bool:
    """Whether files of this model may come from the hub: of a folder, offline (HF_HUB_OFFLINE) or while the hub is
    silent, only the files on this machine are looked at."""
    from huggingface_hub import constants

    if Path(source).is_dir() or constants.is_offline_mode():
        return False
    silent: list[bool] = []

    def ask() -> None:
        try:
            requests.head(constants.ENDPOINT, timeout=SECONDS)
        except requests.exceptions.SSLError:
            silent.append(False)  # whom to trust is for the hub's own client to judge
        except requests.RequestException:
            silent.append(True)
        else:
            silent.append(False)

    # In a thread, for no timeout covers the look-up of the hub's address.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return silent == [False]
