"""Tune a prompt of a model that somebody else serves: python examples/remote.py --url http://127.0.0.1:8000

Start a server first, here or elsewhere: bbt serve minilm-mlm
"""

import argparse

import bbt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://127.0.0.1:8000", help="where `bbt serve` listens")
parser.add_argument("--model", default="minilm-mlm", help="the name it serves")
parser.add_argument("--key-env", help="environment variable that holds our key, if the server asks for one")
parser.add_argument("--queries", type=int, default=200)
arguments = parser.parse_args()

outcome = bbt.tune(
    {
        "task": {"name": "sst2"},
        "model": {
            "backend": "http",
            "name": arguments.model,
            "options": {"url": arguments.url, "api_key_env": arguments.key_env},
        },
        "budget": {"queries": arguments.queries},
    }
)
cost = outcome.result["cost"]
queries = cost["train_queries"] + cost["dev_queries"]
print(outcome.result["test"])
print(f"a query: {cost['bytes_up'] / queries:.0f} bytes up, {cost['bytes_down'] / queries:.0f} bytes down")
