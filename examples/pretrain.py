"""Pre-train a small language model on a folder of text files, on a CPU or a GPU, resumable at any moment.

    python examples/pretrain.py CORPUS --kind mlm --init CHECKPOINT_DIR --trim-vocab 12000 --out DIR --minutes 60
    python examples/pretrain.py CORPUS --kind causal --out DIR --minutes 35
    python examples/pretrain.py CORPUS --kind mlm --init CHECKPOINT_DIR --out DIR --minutes 5 --device cuda --muon

CORPUS holds UTF-8 ``*.txt`` files with a blank line between documents.  DIR receives a folder which plain
``AutoModelForMaskedLM`` / ``AutoModelForCausalLM`` and ``AutoTokenizer`` load; DIR.work keeps the optimizer
state, the encoded corpus and the loss curve (``curve.jsonl``).  After a crash, repeat the command with ``--resume``.
With ``--minutes`` the schedule follows the clock, so a run may change its number of threads half-way.
The corpus lies on the device, and batches are drawn and masked there.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from pretrain_model import Objective, model_from, new_model, set_dropout
from pretrain_text import (
    TOKENIZER_KINDS,
    Corpus,
    encode_corpus,
    load_corpus,
    read_documents,
    trim_wordpiece,
)
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIALS = {
    "mlm": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "causal": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}


def prepare_tokenizer(args: argparse.Namespace, documents: dict[str, list[str]]) -> list[int] | None:
    """Save the tokenizer in ``args.out``; return the old id of every kept token where an old one was trimmed."""
    texts = [d for docs in documents.values() for d in docs]
    kept = None
    if args.init:
        tokenizer = Tokenizer.from_file(str(args.init / "tokenizer.json"))
        if args.trim_vocab:
            tokenizer, kept = trim_wordpiece(tokenizer, texts, args.trim_vocab, args.keep_words)
    else:
        tokenizer = TOKENIZER_KINDS[args.kind](texts, args.vocab, args.keep_words)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=args.positions,
        clean_up_tokenization_spaces=False,
        **SPECIALS[args.kind],
    )
    fast.save_pretrained(args.out)
    return kept


def build_optimizers(params: dict[str, torch.nn.Parameter], args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    tables = ("embeddings.", ".wte.", ".wpe.")  # look-up tables are no linear maps: Muon is not for them
    matrices = [n for n, p in params.items() if p.ndim == 2 and not any(t in n for t in tables)] if args.muon else []
    hidden = [params[n] for n in matrices]
    rest = [p for n, p in params.items() if n not in matrices]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    built: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)]
    if hidden:
        built.append(torch.optim.Muon(hidden, lr=args.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return built


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` share of the run, then linear decay to zero at its end."""
    return peak * min(progress / warmup, (1 - progress) / (1 - warmup)) if progress < 1 else 0.0


class Trainer:
    """The model in training, and everything needed to resume."""

    def __init__(self, model: PreTrainedModel, args: argparse.Namespace):
        # On CPU the fused attention's backward pass is far slower.
        model.set_attn_implementation("eager" if args.device.type == "cpu" else "sdpa")
        set_dropout(model, args.dropout)
        self.model, self.args = model.float().to(args.device).train(), args
        self.optimizers = build_optimizers(dict(model.named_parameters()), args)
        self.generator = torch.Generator(args.device).manual_seed(args.seed)
        self.step = self.tokens = 0
        self.seconds = 0.0  # training time spent so far, over all resumptions

    def progress(self) -> float:
        """Share of the run that is done, by the clock or by steps, whichever limit was given."""
        if self.args.steps is not None:
            return self.step / max(1, self.args.steps)
        return self.seconds / (60 * self.args.minutes + 1e-9)

    def update(self, objective: Objective, corpus: Corpus) -> torch.Tensor:
        """Take one step on a new batch, the gradient's norm clipped to 1; return the loss, still on the device."""
        torch.manual_seed(self.args.seed + self.step)  # dropout, the same after a resumption
        loss = objective.training_loss(self.model, *objective.batch(corpus, self.generator, self.step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.progress(), self.args.lr, self.args.warmup)
            optimizer.step()
            optimizer.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + self.args.batch_tokens
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write everything that a resumption needs; the rename makes a kill at any moment harmless."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "generator": self.generator.get_state(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Continue exactly where ``save`` was called: weights, optimizers, data order, counters."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def export(trainer: Trainer, out: Path, work: Path) -> None:
    """Write config and fp16 weights for ``from_pretrained``; each file is swapped in whole."""
    model = trainer.model.__class__(trainer.model.config).half()
    model.load_state_dict(trainer.model.state_dict())
    model.config.dtype = torch.float16
    model.save_pretrained(work / "export")
    for file in (work / "export").iterdir():
        file.chmod(0o644)
        os.replace(file, out / file.name)
    shutil.rmtree(work / "export")


def train(trainer: Trainer, objective: Objective, train_set: Corpus, held: Corpus, args: argparse.Namespace) -> None:
    """Run until the limit; every ``--save-minutes`` save, export, and append a line to the loss curve."""
    bar = tqdm(unit="tok", unit_scale=True, initial=trainer.tokens, mininterval=10)
    clock, saved, losses = time.monotonic(), time.monotonic(), []
    while trainer.progress() < 1:
        losses.append(trainer.update(objective, train_set))
        now = time.monotonic()
        trainer.seconds, clock = trainer.seconds + now - clock, now
        bar.update(args.batch_tokens)
        if now - saved > 60 * args.save_minutes or trainer.progress() >= 1:
            checkpoint(trainer, objective, held, losses, args)
            saved, losses = time.monotonic(), []


def checkpoint(
    trainer: Trainer, objective: Objective, held: Corpus, losses: list[torch.Tensor], args: argparse.Namespace
) -> None:
    """Save, export, and log the mean training loss since the last checkpoint and the held-out loss."""
    trainer.save(args.work / "state.pt")
    export(trainer, args.out, args.work)
    line = {
        "step": trainer.step,
        "tokens": trainer.tokens,
        "minutes": round(trainer.seconds / 60, 2),
        "loss": round(float(torch.stack(losses).mean()), 4),
        "held_out": round(objective.held_out(trainer.model, held), 4),
    }
    with (args.work / "curve.jsonl").open("a") as curve:
        curve.write(json.dumps(line) + "\n")
    tqdm.write(json.dumps(line))


def parse_args() -> argparse.Namespace:
    """Command line; the defaults are a 7M-parameter model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("corpus", type=Path)
    add("--kind", choices=["mlm", "causal"], required=True)
    add("--out", type=Path, required=True)
    add("--init", type=Path, help="folder of a checkpoint to start from")
    add("--trim-vocab", type=int, help="keep only this many of the checkpoint's word pieces")
    add("--keep-words", default="", help="file of words that must be one token each, separated by white space")
    add("--vocab", type=int, default=8192, help="size of a new vocabulary")
    add("--layers", type=int, default=6)
    add("--width", type=int, default=256)
    add("--heads", type=int, default=8)
    add("--positions", type=int, default=512)
    add("--minutes", type=float, default=60, help="training time, all resumptions together")
    add("--steps", type=int, help="stop after so many steps instead")
    add("--resume", action="store_true")
    add("--batch-tokens", type=int, default=4096)
    add("--lengths", type=lambda s: [int(x) for x in s.split(",")], default=[128], help="e.g. 64,64,128")
    add("--mask-rate", type=float, default=0.2)
    add(
        "--mask-pivot",
        type=float,
        default=1e-3,
        help="mask words above this frequency less; 1 masks all alike",
    )
    add("--weights", default="", help="how often to draw from a file, e.g. reviews=2,novels=0.5")
    add("--lr", type=float, default=4e-4)
    add("--warmup", type=float, default=0.03, help="share of the run")
    add("--muon", action="store_true", help="Muon for the hidden matrices")
    add("--dropout", type=float, default=0.0)
    add("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda, cuda:1, ...")
    add("--compile", action="store_true")
    add("--save-minutes", type=float, default=3)
    add("--held-out", type=int, default=200, help="hold out one document in so many")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    args.keep_words = Path(args.keep_words).read_text().split() if args.keep_words else []
    args.weights = {k: float(v) for k, v in (pair.split("=") for pair in args.weights.split(",") if pair)}
    args.work = args.out.with_name(args.out.name + ".work")
    return args


def prepare(args: argparse.Namespace) -> None:
    """Write tokenizer and encoded corpus; the list of kept tokens comes last and marks that all is there."""
    documents = read_documents(args.corpus)
    kept = prepare_tokenizer(args, documents)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    end = tokenizer.sep_token_id if args.kind == "mlm" else tokenizer.eos_token_id
    encode_corpus(documents, tokenizer.backend_tokenizer, end, args.held_out, args.work / "corpus.npz")
    (args.work / "kept.json").write_text(json.dumps(kept))


def main() -> None:
    """Prepare what is missing, then train."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "kept.json").exists():
        prepare(args)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.out)
    kept = json.loads((args.work / "kept.json").read_text())
    train_set, held = (
        load_corpus(args.work / "corpus.npz", part, args.weights, args.device) for part in ("train", "held")
    )
    model = model_from(args.init, args.kind, kept) if args.init else new_model(args, len(tokenizer))
    trainer = Trainer(model, args)
    if args.resume and (args.work / "state.pt").exists():
        trainer.load(args.work / "state.pt")
    train(trainer, Objective(args, tokenizer, train_set), train_set, held, args)


if __name__ == "__main__":
    main()
