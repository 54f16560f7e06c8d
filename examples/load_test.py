"""Many clients at once on a `bbt serve`: python examples/load_test.py --url http://127.0.0.1:8000 --clients 50

Every client sends small populations, one after another, waits when it is told to (429), and counts what it is
answered. Prints the answers by state, percentiles of the latency of sound ones, and the server's memory over time.
"""

import argparse
import re
import threading
import time
from collections import Counter

import numpy as np
import requests

from backends.wire import MEDIA_TYPE, pack, unpack

ROWS = [[{"kind": "prompt", "n_tokens": 5}, {"kind": "text", "text": "a joy from start to end"}, {"kind": "mask"}]] * 4
BODY = {"rows": ROWS, "label_words": ["bad", "great"]}


class Load:
    """What all clients have seen."""

    def __init__(self, url: str, n_candidates: int, join: bool) -> None:
        self.url, self.n, self.join = url, n_candidates, join
        self.hidden_size = requests.get(url + "/v1/model", timeout=60).json()["info"]["hidden_size"]
        self.states: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.stop = threading.Event()

    def client(self, seed: int) -> None:
        """One client, until told to stop."""
        session, rng = requests.Session(), np.random.default_rng(seed)
        rows = None
        while not self.stop.is_set():
            start = time.perf_counter()
            try:
                if rows is None:
                    answer = session.post(self.url + "/v1/rows", json=BODY, timeout=120)
                else:
                    body = pack(rng.normal(0, 0.1, (self.n, 5, self.hidden_size)))
                    path = f"/v1/scores?rows={rows}&join={self.join}"
                    answer = session.post(self.url + path, data=body, headers={"Content-Type": MEDIA_TYPE}, timeout=120)
            except requests.RequestException as error:
                self.states[type(error).__name__] += 1
                continue
            self.states[str(answer.status_code)] += 1
            if answer.status_code == 429:
                self.stop.wait(float(answer.headers["Retry-After"]))
            elif rows is None and answer.ok:
                rows = answer.json()["id"]
            elif answer.ok:
                self.seconds.append(time.perf_counter() - start)
                assert unpack(answer.content, len(ROWS), 2).shape[0] == self.n

    def memory_mb(self) -> float:
        """The server's resident memory, as it says itself."""
        page = requests.get(self.url + "/metrics", timeout=120).text
        found = re.search(r"^process_resident_memory_bytes (\S+)", page, re.MULTILINE)
        return float(found[1]) / 1e6 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a `bbt serve` without keys")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--candidates", type=int, default=2, help="of one request")
    parser.add_argument("--join", action="store_true", help="let the server join requests")
    arguments = parser.parse_args()

    load = Load(arguments.url, arguments.candidates, arguments.join)
    threads = [threading.Thread(target=load.client, args=(seed,)) for seed in range(arguments.clients)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        time.sleep(arguments.seconds / 6)
        print(f"memory: {load.memory_mb():.0f} MB, {len(load.seconds)} populations scored", flush=True)
    load.stop.set()
    for thread in threads:
        thread.join()
    print("answers:", dict(load.states))
    percentiles = np.percentile(load.seconds, [50, 90, 99, 100])
    print(
        "latency, seconds: " + ", ".join(f"p{p} {s:.2f}" for p, s in zip((50, 90, 99, 100), percentiles, strict=True))
    )


if __name__ == "__main__":
    main()
