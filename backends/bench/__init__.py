"""How fast a model scores prompts: against plain transformers, and against what the chip can do."""
