"""From a model's name to where its files are, and what its config and tokenizer tell, before a weight is read.

PyTorch and `transformers` take seconds to import; nothing here does so before it must.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from backends.local.encoding import special_ids
from backends.local.gguf import SMOLLM2, plain_copy, smollm2_file
from backends.models import bundled_models
from bbt.errors import BackendError, did_you_mean

Kind = Literal["masked", "causal"]


def known_models() -> list[str]:
    """The names that stand for a model without a folder or the hub."""
    return [*bundled_models(), SMOLLM2]


def resolve(model: str) -> str:
    """A bundled name becomes its folder, a GGUF file the folder of its plain copy; anything else is left to
    `transformers`.

    Raises:
        BackendError: a GGUF file that cannot be read.
    """
    if model == SMOLLM2:
        return str(plain_copy(smollm2_file()))
    if model.lower().endswith(".gguf"):
        return str(plain_copy(Path(model).expanduser()))
    return str(bundled_models().get(model, model))


@contextmanager
def cannot_load(model: str) -> Iterator[None]:
    """What `transformers` and its helpers raise becomes one line that says what a model may be.

    Raises:
        BackendError: in place of the exception.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        names = known_models()
        raise BackendError(
            f"cannot load model {model!r}: {reason}{did_you_mean(model, names)} "
            f"Give a folder, a GGUF file, a name on the hub, or one of: {', '.join(names)}."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no report of weights that are not used; what is missing is an error of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the only one
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_tokenizer(model: str, tokenizer: Any, n_words: int) -> None:
    """Refuse a tokenizer whose ids are not rows of the model's `n_words` word embeddings. Special tokens that are
    never put into a row (a chat model's padding, for instance) may lie beyond them.

    Raises:
        BackendError: not a fast tokenizer, made up from nothing, or larger than the embeddings.
    """
    if not tokenizer.is_fast:
        raise BackendError(f"model {model!r} has no fast tokenizer (tokenizer.json), which truncation needs.")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the files are missing
        raise BackendError(f"model {model!r} comes without a tokenizer: no tokenizer.json or vocabulary beside it.")
    unused = special_ids(tokenizer) - {*tokenizer("a")["input_ids"], tokenizer.mask_token_id}
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= n_words and i not in unused]
    if beyond:
        raise BackendError(
            f"the tokenizer of model {model!r} does not belong to its weights: {len(beyond)} of its tokens, "
            f"{beyond[0]!r} among them, lie beyond the {n_words} word embeddings. Put the tokenizer that the model was "
            "trained with beside it, or resize the embeddings and train them."
        )


def checked_kind(model: str, config: Any, kind: Kind | None) -> Kind:
    """The kind asked for, or the config's own.

    Raises:
        BackendError: a model of neither kind, or that `transformers` does not have in the kind asked for.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    what = f"cannot load model {model!r}: it is of type {config.model_type} ({', '.join(config.architectures or [])})"
    if getattr(config, "is_encoder_decoder", False) and kind != "causal":
        raise BackendError(
            f"{what}, an encoder-decoder model; bbt tunes masked LMs (BERT's kind) and causal LMs (GPT's kind)."
        )
    chosen = kind or kind_of(config)
    if type(config) not in (MODEL_FOR_MASKED_LM_MAPPING if chosen == "masked" else MODEL_FOR_CAUSAL_LM_MAPPING):
        known = f"which is no {chosen} LM" if kind else "neither a masked LM (BERT's kind) nor a causal LM (GPT's kind)"
        raise BackendError(f"{what}, {known}.")
    return chosen


def kind_of(config: Any) -> Kind:
    """From the architecture in config.json; a model type known to one auto class only decides otherwise."""
    names = " ".join(config.architectures or [])
    if "MaskedLM" in names or "ForPreTraining" in names:
        return "masked"
    if "CausalLM" in names or "LMHead" in names:
        return "causal"
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    return "masked" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "causal"
