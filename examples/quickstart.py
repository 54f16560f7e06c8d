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
outcome.prompt.save("sst2-prompt.safetensors")
print(bbt.Predictor("sst2-prompt.safetensors").predict(["a joy from start to end"]))
