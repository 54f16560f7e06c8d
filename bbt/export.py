"""A tuned prompt is written here for those who do not have bbt: for PEFT, transformers or vLLM, or as bare vectors.

Every folder holds `classifier.json` (the text to tokenise, label words or whole labels and their ids, class biases,
where labels are read from many words their weights, template, model; or how text is generated where that is the
answer), and a README.md with the lines that use it. Where the manual prompt is the best of a run there are no vectors.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from backends.models import bundled_models
from bbt.backend import Backend
from bbt.errors import ConfigError, PromptError, unknown
from bbt.experiment.classifiers import Classifier, SoftPromptClassifier
from bbt.experiment.generators import Generator, SoftPromptGenerator
from bbt.export_labels import label_lines
from bbt.files import write_atomically, write_bytes_atomically
from bbt.prompts.peft import virtual_tokens, write_facts, write_peft
from bbt.settings import by_likelihood
from bbt.types import Prompts

Target = Literal["peft", "transformers", "vllm", "safetensors"]

VECTORS, KEY = "prompt_embeds.safetensors", "prompt_embeds"

_LOADED = """\
facts = json.loads(Path("classifier.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(facts["model"])
text = facts["text"].format(text="your text", text_pair="your second text, where there are two")
ids = tokenizer(text, add_special_tokens=facts["add_special_tokens"], return_tensors="pt").input_ids
"""
_READ = {
    "causal": "read = -1  # the label word comes next\n",
    "masked": 'read = facts["n_virtual_tokens"] + ids[0].tolist().index(tokenizer.mask_token_id)\n',
    "encoder-decoder": "read = -1  # the decoder says the label word next\n",
}
_GIVEN = {
    "causal": "",
    "masked": "",
    "encoder-decoder": ', decoder_input_ids=torch.tensor([facts["decoder_ids"]])',
}
_N_GIVEN_IDS = {"causal": "ids.shape[1]", "encoder-decoder": 'len(facts["decoder_ids"])'}
_N_GIVEN_EMBEDDINGS = {"causal": "0", "encoder-decoder": 'len(facts["decoder_ids"])'}
_SKIPPED = {"causal": "", "encoder-decoder": ", skip_special_tokens=True"}
_SCORED = """\
scores = {weighed}logits[read, facts["label_ids"]] + torch.tensor(facts["biases"])
probabilities = dict(zip(facts["label_names"], scores.softmax(-1).tolist()))
"""
_IMPORTS = "import json\nfrom pathlib import Path\n\nimport torch\n"
_AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}

_PEFT = """\
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

{loaded}model = PeftModel.from_pretrained({auto}.from_pretrained(facts["model"], dtype=torch.float32), ".").eval()
with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids){given}).logits[0]
{read}{scored}"""
_TRANSFORMERS = """\
from safetensors.torch import load_file
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
prompt = load_file("prompt_embeds.safetensors")["prompt_embeds"]
embeddings = torch.cat([prompt[None], model.get_input_embeddings()(ids)], dim=1)
with torch.no_grad():
    logits = model(inputs_embeds=embeddings{given}).logits[0]
{read}{scored}"""
_MANUAL = """\
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(input_ids=ids{given}).logits[0]
{read}{scored}"""
_VLLM = """\
import base64
import io

import requests
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

url = "http://localhost:8000/v1/completions"  # vllm serve MODEL --enable-prompt-embeds
{loaded}words = AutoModelForCausalLM.from_pretrained(facts["model"]).get_input_embeddings()  # the client needs no more
prompt = load_file("prompt_embeds.safetensors")["prompt_embeds"]
buffer = io.BytesIO()
torch.save(torch.cat([prompt, words(ids)[0]]).detach(), buffer)
asked = {{"logprobs": 1, "logprob_token_ids": facts["label_ids"], "return_tokens_as_token_ids": True}}
body = {{"model": facts["model"], "prompt_embeds": [base64.b64encode(buffer.getvalue()).decode()], **asked}}
answer = requests.post(url, json={{**body, "max_tokens": 1, "temperature": 0}}).json()
told = answer["choices"][0]["logprobs"]["top_logprobs"][0]
scores = {weighed}torch.tensor([told[f"token_id:{{i}}"] for i in facts["label_ids"]]) + torch.tensor(facts["biases"])
probabilities = dict(zip(facts["label_names"], scores.softmax(-1).tolist()))
"""
_ENDED = """\
told = [one.eos_token_id for one in (model.generation_config, model.config, tokenizer) if one.eos_token_id is not None]
ends = told[0] if told and isinstance(told[0], list) else told[:1]
n = {n_given}
stops = lambda row: any(stop in tokenizer.decode(row[n:]) for stop in facts["stop"])
halt = lambda ids, scores, **_: torch.tensor([stops(row) for row in ids])
how = facts["generation"] | {{"eos_token_id": ends or None, "pad_token_id": [*ends, 0][0], "stopping_criteria": [halt]}}
torch.manual_seed(facts["seed"])
"""
_ANSWERED = """\
new = written[0, n:].tolist()
answer = tokenizer.decode(new[:-1] if new and new[-1] in ends else new{skipped})
answer = answer[: min((at for at in map(answer.find, facts["stop"]) if at >= 0), default=len(answer))].strip()
"""
_PEFT_WRITES = """\
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

{loaded}model = PeftModel.from_pretrained({auto}.from_pretrained(facts["model"], dtype=torch.float32), ".").eval()
{ended_ids}written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids){given}, **how)
{answered}"""
_TRANSFORMERS_WRITES = """\
from safetensors.torch import load_file
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
prompt = load_file("prompt_embeds.safetensors")["prompt_embeds"]
embeddings = torch.cat([prompt[None], model.get_input_embeddings()(ids)], dim=1)
mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
{ended_embeddings}written = model.generate(inputs_embeds=embeddings, attention_mask=mask{given}, **how)
{answered}"""
_MANUAL_WRITES = """\
from transformers import {auto}, AutoTokenizer

{loaded}model = {auto}.from_pretrained(facts["model"], dtype=torch.float32).eval()
{ended_ids}written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids){given}, **how)
{answered}"""
_VLLM_WRITES = """\
import base64
import io

import requests
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

url = "http://localhost:8000/v1/completions"  # vllm serve MODEL --enable-prompt-embeds
{loaded}words = AutoModelForCausalLM.from_pretrained(facts["model"]).get_input_embeddings()  # the client needs no more
prompt = load_file("prompt_embeds.safetensors")["prompt_embeds"]
buffer = io.BytesIO()
torch.save(torch.cat([prompt, words(ids)[0]]).detach(), buffer)
how = facts["generation"]
asked = {{"max_tokens": how["max_new_tokens"], "stop": facts["stop"], "seed": facts["seed"]}}
asked |= {{"temperature": how["temperature"], "top_p": how["top_p"]}} if how["do_sample"] else {{"temperature": 0}}
body = {{"model": facts["model"], "prompt_embeds": [base64.b64encode(buffer.getvalue()).decode()], **asked}}
answer = requests.post(url, json=body).json()["choices"][0]["text"].strip()
"""
_WRITES = {
    "peft": _PEFT_WRITES,
    "transformers": _TRANSFORMERS_WRITES,
    "safetensors": _TRANSFORMERS_WRITES,
    "vllm": _VLLM_WRITES,
}
_LINES = {"peft": _PEFT, "transformers": _TRANSFORMERS, "safetensors": _TRANSFORMERS, "vllm": _VLLM}


def export(classifier: Classifier | Generator, backend: Backend, to: Target, folder: Path | str) -> bool:
    """Write a folder for users of `to`, and return whether it holds a soft prompt; the manual prompt is none.

    Raises:
        ConfigError: no such target, or vLLM for a masked LM.
        PromptError, BackendError: what was trained is no soft prompt, or one that cannot be had exactly without bbt.
    """
    if to not in get_args(Target):
        raise ConfigError(unknown("target", to, get_args(Target)))
    if not isinstance(classifier, (SoftPromptClassifier, SoftPromptGenerator)):
        raise PromptError(f"what was trained is no soft prompt (a {type(classifier).__name__}): it cannot be exported.")
    if to == "vllm" and backend.info.kind != "causal":
        raise ConfigError(
            f"vLLM serves causal LMs; {backend.info.name} is no such model: export to peft or transformers."
        )
    vectors, facts = virtual_tokens(replace(classifier.prompt, model=_findable(classifier.prompt.model)), backend)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not len(vectors):
        write_facts(folder, facts)
    elif to == "peft":
        write_peft(folder, vectors, facts)
    else:
        _write_vectors(folder, vectors, facts)
    write_atomically(folder / "README.md", _page(to, facts))
    return bool(len(vectors))


def _findable(model: str) -> str:
    """Name the model so that transformers finds it: by a folder's whole path, or by its name on the hub."""
    folder = bundled_models().get(model, Path(model))
    return str(folder.resolve()) if folder.is_dir() else model


def _write_vectors(folder: Path, vectors: Prompts, facts: dict[str, Any]) -> None:
    """Write the vectors as a safetensors file, and the facts beside them."""
    from safetensors.numpy import save

    write_bytes_atomically(folder / VECTORS, save({KEY: vectors}, metadata={"format": "pt"}))
    write_facts(folder, facts)


def _page(to: Target, facts: dict[str, Any]) -> str:
    """Write the README's text: what the folder is, and the lines that use it when they are run in it."""
    kind, writes = facts["kind"], "generation" in facts
    weighed = 'torch.tensor(facts["weights"]) @ ' if "weights" in facts else ""
    soft, manual = (_WRITES[to], _MANUAL_WRITES) if writes else (_LINES[to], _MANUAL)
    lines = (soft if facts["n_virtual_tokens"] else manual).format(
        auto=_AUTO[kind],
        loaded=_LOADED,
        read=_READ[kind],
        scored=_SCORED.format(weighed=weighed),
        weighed=weighed,
        given=_GIVEN[kind],
        answered=_ANSWERED.format(skipped=_SKIPPED.get(kind)),
        ended_ids=_ENDED.format(n_given=_N_GIVEN_IDS.get(kind)),
        ended_embeddings=_ENDED.format(n_given=_N_GIVEN_EMBEDDINGS.get(kind)),
    )
    held = f"A soft prompt of {facts['n_virtual_tokens']} virtual tokens"
    if not facts["n_virtual_tokens"]:
        held = "No soft prompt: the manual prompt was the best of its run. Its text and " + (
            "how it is gone on from" if writes else "class biases"
        )
    belongs = f"for `{facts['model']}` (weights {facts['fingerprint']})"
    words = "The answer is a text" if writes else f"The label words are {', '.join(facts['label_words'])}"
    if by_likelihood(facts["scored_by"]):
        lines = label_lines(to, facts, _AUTO[kind], _LOADED)
        words = words.replace("label words", "labels")
    words += "; what else belongs to it is in `classifier.json`."
    return f"# A prompt tuned with bbt\n\n{held} {belongs}. {words}\n\n```python\n{_IMPORTS}{lines}```\n"
