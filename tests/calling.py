"""Plain requests to a server of the toy, as anybody might send them."""

import numpy as np
import requests

from backends.wire import MEDIA_TYPE, pack
from bbt.tasks.template import Template

ROWS = [Template("{prompt} {text} {mask}").render(text, "", 2) for text in ("1.5", "-0.5", "3")]
BODY = {
    "rows": [[{"kind": s.kind, "text": s.text, "n_tokens": s.n_tokens} for s in row] for row in ROWS],
    "label_words": ["no", "yes"],
}
ARRAY = {"Content-Type": MEDIA_TYPE}


class Caller:
    """Plain requests with a key."""

    def __init__(self, url, key=None):
        self.url, self._session = url, requests.Session()
        self._session.trust_env = False
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def get(self, path, **options):
        return self._session.get(self.url + path, **options)

    def post(self, path, **options):
        return self._session.post(self.url + path, **options)

    def rows(self):
        return self.post("/v1/rows", json=BODY).json()["id"]

    def scores(self, rows, prompts, more=""):
        return self.post(f"/v1/scores?rows={rows}{more}", data=pack(prompts), headers=ARRAY)


def prompts(n=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 2, 4)).astype(np.float32)


def space(caller, d=3, seed=5, **changes):
    from bbt.spaces.soft import PromptSpace, Recipe

    drawn = PromptSpace.drawn(prompts(1), Recipe(seed, d, "normal", 0.5))
    p0 = caller.post("/v1/prompts?n_prompt_tokens=2", data=pack(drawn.p0), headers=ARRAY).json()["id"]
    facts = {"p0": p0, "seed": seed, "intrinsic_dim": d, "projection": "normal", "scale": 0.5}
    return drawn, caller.post("/v1/spaces", json={**facts, "checksum": drawn.checksum(), **changes})
