"""From prompts to losses: this room holds scores, the ledger, losses, the objective, and the judgement on dev."""
