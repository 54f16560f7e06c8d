"""From prompts to losses: scores, the ledger, losses, the objective, the judgement on dev."""
