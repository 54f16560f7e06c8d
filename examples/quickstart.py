"""Tune a prompt, test it, use it."""

import bbt

outcome = bbt.tune(
    {
        "task": {"name": "sst2"},
        "model": {"name": "minilm-mlm"},
        "budget": {"queries": 200},
    }
)
print(outcome.result["test"])
outcome.save("sst2-tuned")
print(bbt.Predictor("sst2-tuned").predict(["a joy from start to end"]))
