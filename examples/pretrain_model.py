"""Model side of ``pretrain.py``: building the network and turning rows of tokens into a loss."""

import argparse
from pathlib import Path

import torch
from pretrain_text import Corpus
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def new_model(args: argparse.Namespace, vocab: int) -> PreTrainedModel:
    """A randomly initialised BERT or GPT-2 of the asked size, whose config says no dropout."""
    if args.kind == "mlm":
        config = BertConfig(
            vocab_size=vocab,
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.width,
            max_position_embeddings=args.positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertForMaskedLM(config)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.heads,
        n_positions=args.positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def model_from(init: Path, kind: str, kept: list[int] | None) -> PreTrainedModel:
    """Load a checkpoint, cut its embeddings down to the kept tokens, and give it a masked-LM head if it has none."""
    config = AutoConfig.from_pretrained(init)
    if kind == "causal":
        return GPT2LMHeadModel.from_pretrained(init, dtype=torch.float32)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    fresh_head = "BertForMaskedLM" not in (config.architectures or [])
    model = BertForMaskedLM.from_pretrained(init, config=config, dtype=torch.float32)
    if kept is not None:
        rows = model.get_input_embeddings().weight.data[kept].clone()
        bias = model.cls.predictions.bias.data[kept].clone()
        model.resize_token_embeddings(len(kept))
        model.get_input_embeddings().weight.data.copy_(rows)
        model.cls.predictions.bias.data.copy_(bias)
    if fresh_head:
        identity_head(model)
    return model


def set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop so many activations in training; the config that is exported goes on to say none."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


@torch.no_grad()
def identity_head(model: PreTrainedModel, shift: float = 3.0) -> None:
    """Let the new head's transform pass the hidden state through unchanged.

    GELU is the identity well above zero: the bias lifts every unit there, and the LayerNorm that follows
    subtracts the common shift again.  Its gain is set so that the logits start with a spread of about one.
    """
    transform = model.cls.predictions.transform
    transform.dense.weight.copy_(torch.eye(len(transform.dense.weight)))
    transform.dense.bias.fill_(shift)
    spread = model.get_input_embeddings().weight.norm(dim=1).mean()
    transform.LayerNorm.weight.fill_(1.0 / float(spread))
    transform.LayerNorm.bias.zero_()


def mask_odds(counts: torch.Tensor, specials: list[int], pivot: float) -> torch.Tensor:
    """How eagerly each token is masked, (vocab,): 1 for rare words, falling as 1/sqrt(frequency) above ``pivot``.

    Punctuation and function words teach little about a text's topic or tone, so the loss goes to content words.
    """
    odds = (pivot * counts.sum() / counts.clamp(min=1)).sqrt().clamp(max=1.0)
    odds[specials] = 1e-6
    return odds


def masked_batch(
    rows: torch.Tensor, ids: dict[str, int], odds: torch.Tensor, rate: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frame rows (B, L-2) as [CLS] row [SEP] and mask K tokens of each: inputs (B, L), places and targets (B, K).

    Every row loses the same number of tokens (the K best of log odds + Gumbel noise), which keeps shapes fixed.
    """
    frame = torch.ones_like(rows[:, :1])
    inputs = torch.cat([frame * ids["cls"], rows, frame * ids["sep"]], dim=1)
    uniform = torch.rand(inputs.shape, generator=generator, device=rows.device).clamp(1e-9, 1 - 1e-7)
    places = (odds[inputs].log() - (-uniform.log()).log()).topk(round(rate * inputs.shape[1]), dim=1).indices
    targets = inputs.gather(1, places)
    return inputs.scatter(1, places, ids["mask"]), places, targets


def masked_loss(model: PreTrainedModel, inputs: torch.Tensor, places: torch.Tensor, targets: torch.Tensor):
    """Mean cross-entropy (nats) at the masked places; the vocabulary-wide head runs nowhere else."""
    hidden = model.bert(inputs).last_hidden_state
    picked = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[-1]))
    return cross_entropy(model.cls(picked).flatten(0, 1).float(), targets.flatten())


def causal_loss(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of every next token of rows (B, L+1)."""
    logits = model(rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


class Objective:
    """Draws batches of ``batch_tokens`` tokens and turns a model into a loss, for either kind of model."""

    def __init__(self, args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, train: Corpus):
        self.args = args
        self.device = train.tokens.device
        self.training_loss = torch.compile(self.loss) if args.compile else self.loss
        counts = torch.bincount(train.tokens, minlength=len(tokenizer)).float()
        self.odds = {"content": mask_odds(counts, tokenizer.all_special_ids, args.mask_pivot)}
        self.odds["uniform"] = mask_odds(counts, tokenizer.all_special_ids, 1.0)
        if args.kind == "mlm":
            self.ids = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "mask": tokenizer.mask_token_id}

    def loss(self, model: PreTrainedModel, *batch: torch.Tensor) -> torch.Tensor:
        """Mean loss (nats) of a batch; products are taken in bf16, the weights stay in fp32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return masked_loss(model, *batch) if self.args.kind == "mlm" else causal_loss(model, *batch)

    def batch(
        self, corpus: Corpus, generator: torch.Generator, step: int, masking: str = "content"
    ) -> tuple[torch.Tensor, ...]:
        """The batch of one step, at the lengths of ``--lengths`` in turn, so that every position gets trained."""
        length = self.args.lengths[step % len(self.args.lengths)]
        count = self.args.batch_tokens // length
        if self.args.kind == "causal":
            return (corpus.rows(count, length + 1, generator),)
        rate = self.args.mask_rate if masking == "content" else 0.15
        return masked_batch(corpus.rows(count, length - 2, generator), self.ids, self.odds[masking], rate, generator)

    @torch.no_grad()
    def held_out(self, model: PreTrainedModel, corpus: Corpus, batches: int = 8) -> float:
        """Mean loss (nats) on the same held-out windows every time; masks are uniform, 15 %, whatever training does."""
        generator = torch.Generator(self.device).manual_seed(0)
        model.eval()
        losses = [self.loss(model, *self.batch(corpus, generator, step, "uniform")) for step in range(batches)]
        model.train()
        return float(torch.stack(losses).mean())
