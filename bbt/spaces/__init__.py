"""This room says what z means: p0 + A z, deep and hard prompts, and where a search begins."""
