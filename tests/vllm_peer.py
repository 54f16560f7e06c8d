"""A real HTTP server over a tiny model in plain transformers that speaks vLLM's dialect of `/v1/completions`, as it was
measured on vLLM 0.32, and OpenAI's chat: what it answers is computed. It is no proof for vLLM itself:
tests/test_live_endpoints.py is.
"""

import base64
import io
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoTokenizer


@dataclass
class Peer:
    """What is served, and how.

    `embeds` is --enable-prompt-embeds, `chosen` whether logprob_token_ids is known, `tells` whether log-probabilities
    are told at all; `other_words` serves other word embeddings, `wrong_ids` another tokenizer. `pieces` tells tokens as
    the vocabulary holds them, `nulls` are so many impossible tokens at the end of every list, `hidden` are tokens that
    are left out of it. `chat_lists` answers completions with lists in the form of chat, and chat with `content`
    instead of its message's. `states` are answered in their turn, one a request, before anything else; None: as usual.
    `log` holds every request's body.
    """

    model: object
    tokenizer: object
    name: str = "peer"
    max_length: int = 64
    embeds: bool = True
    chosen: bool = True
    tells: bool = True
    key: str | None = None
    other_words: bool = False
    wrong_ids: bool = False
    poisoned: bool = False
    pieces: bool = False
    nulls: int = 0
    hidden: tuple = ()
    chat_lists: bool = False
    content: object = "as it is"
    states: object = iter(())
    log: list = field(default_factory=list)
    url: str = ""

    def completions(self, body):
        """Status and body for one request."""
        if body["model"] != self.name:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if "prompt_embeds" in body and (body.get("echo") or not body["max_tokens"]):
            return refusal(400, "echo and max_tokens of 0 do not go with prompt_embeds")
        if "use_beam_search" in body or "best_of" in body:
            return refusal(400, "not supported")
        if "prompt_embeds" in body and not self.embeds:
            return refusal(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        prompts = body.get("prompt_embeds") or body["prompt"]
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if len(prompts) > 1024 or len(body.get("logprob_token_ids") or ()) > 128:
            return refusal(400, "which is greater than max allowed")
        try:
            inputs = [self._embeddings(prompt, "prompt_embeds" in body, body["max_tokens"]) for prompt in prompts]
        except ValueError as error:
            return refusal(400, str(error))
        if not all(item.isfinite().all() for item in inputs):
            self.poisoned = True
        if self.poisoned:
            return refusal(400, "Out of range float values are not JSON compliant: nan")
        if body.get("echo"):
            choices = [{"index": i, **self._echo(ids)} for i, ids in enumerate(prompts)]
        else:
            choices = [{"index": i, **self._choice(item, body)} for i, item in enumerate(inputs)]
        usage = {"prompt_tokens": sum(map(len, inputs)), "completion_tokens": body["max_tokens"] * len(inputs)}
        return 200, {"object": "text_completion", "choices": choices, "usage": usage}

    def chat(self, body):
        """The same, asked and told as in a chat."""
        text = body["messages"][-1]["content"]
        status, answer = self.completions({**body, "prompt": text, "logprobs": body.get("top_logprobs", 0)})
        for choice in answer.get("choices", []):
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
            if self.content is None:
                del choice["message"]["content"]
            elif self.content != "as it is":
                choice["message"]["content"] = self.content
            if choice["logprobs"]:
                choice["logprobs"] = as_in_chat(choice["logprobs"])
        return status, answer

    def _embeddings(self, prompt, embedded, n_new):
        if embedded:
            raw = base64.b64decode(prompt, validate=True)
            tensor = torch.load(io.BytesIO(raw), weights_only=True).float()
            if len(raw) > tensor.nbytes + 4096:
                raise ValueError(f"{len(raw)} bytes for a tensor of {tensor.nbytes}: the storage of a view")
            if tensor.ndim != 2 or tensor.shape[1] != self.model.config.hidden_size:
                raise ValueError("`prompt_embeds` hidden_size does not match the model's hidden_size")
        else:
            ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"][self.wrong_ids :]
            tensor = self.model.get_input_embeddings()(torch.tensor(ids))
            tensor = tensor.roll(1, dims=1) if self.other_words else tensor
        if len(tensor) + n_new > self.max_length:
            raise ValueError(f"This model's maximum context length is {self.max_length} tokens.")
        return tensor

    @torch.no_grad()
    def _choice(self, embeddings, body):
        log_probs = self.model(inputs_embeds=embeddings[None]).logits[0, -1].log_softmax(-1)
        allowed = body.get("allowed_token_ids")
        sampled = allowed[int(log_probs[allowed].argmax())] if allowed else int(log_probs.argmax())
        listed = [sampled, *log_probs.topk(min(body.get("logprobs") or 0, len(log_probs))).indices.tolist()]
        listed += (body.get("logprob_token_ids") or []) if self.chosen else []
        name = self.tokenizer.convert_ids_to_tokens if self.pieces else self.tokenizer.decode
        if body.get("return_tokens_as_token_ids"):
            name = lambda i: f"token_id:{i}"  # noqa: E731
        values = {name(i): log_probs[i].item() for i in listed}
        values = {token: value for token, value in values.items() if token.strip(" \u0120") not in self.hidden}
        least = sorted(values, key=values.get)[: self.nulls]
        told = {
            "tokens": [name(sampled)],
            "token_logprobs": [log_probs[sampled].item()],
            "top_logprobs": [{token: None if token in least else value for token, value in values.items()}],
        }
        told = as_in_chat(told) if self.chat_lists else told
        return {"text": self._continued(embeddings, body), "logprobs": told if self.tells else None}

    @torch.no_grad()
    def _echo(self, ids):
        """The log-probability of each token of the prompt."""
        log_probs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        values = [None, *(log_probs[i, token].item() for i, token in enumerate(ids[1:]))]
        names = [f"token_id:{i}" for i in ids]
        return {"text": self.tokenizer.decode(ids), "logprobs": {"tokens": names, "token_logprobs": values}}

    def _continued(self, embeddings, body):
        """The text that goes on: the most likely one, or one drawn by the request's seed."""
        ids, generator = [], torch.Generator().manual_seed(body.get("seed") or 0)
        for _ in range(body["max_tokens"]):
            logits = self.model(inputs_embeds=embeddings[None]).logits[0, -1]
            if body.get("temperature"):
                probabilities = (logits / body["temperature"]).softmax(-1)
                ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
            else:
                ids.append(int(logits.argmax()))
            if ids[-1] == self.model.config.eos_token_id and "stop" in body:
                ids.pop()
                break
            embeddings = torch.cat([embeddings, self.model.get_input_embeddings()(torch.tensor(ids[-1:]))])
        text = self.tokenizer.decode(ids)
        return text[: min((at for at in map(text.find, body.get("stop") or ()) if at >= 0), default=len(text))]


def as_in_chat(told):
    """Log-probabilities in the form of `/v1/chat/completions`."""
    if "content" in told:
        return told
    top = told["top_logprobs"][0].items()
    return {"content": [{"top_logprobs": [{"token": token, "logprob": value} for token, value in top]}]}


def refusal(status, message):
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}


class Handler(BaseHTTPRequestHandler):
    def __init__(self, peer, *args):
        self.peer = peer
        super().__init__(*args)

    def do_GET(self):
        if self.path != "/v1/models":
            return self._answer(404, {"detail": "Not Found"})
        return self._answer(200, {"data": [{"id": self.peer.name, "max_model_len": self.peer.max_length}]})

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.peer.key and self.headers.get("Authorization") != f"Bearer {self.peer.key}":
            return self._answer(401, {"error": "Unauthorized"})
        if "Content-Encoding" in self.headers:
            return self._answer(*refusal(400, "There was an error parsing the body"))
        body = json.loads(raw)
        status = next(self.peer.states, None)
        if status is not None:
            return self._answer(*refusal(status, "not now"))
        self.peer.log.append(body)
        answer = self.peer.chat if self.path == "/v1/chat/completions" else self.peer.completions
        return self._answer(*answer(body))

    def _answer(self, status, body):
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


def make_peer(reference, **settings):
    """A peer of a `reference` model with a tokenizer of its own."""
    return Peer(reference.model, AutoTokenizer.from_pretrained(reference.folder), **settings)


@contextmanager
def serving(peer):
    """The peer at its `url`, on a free port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, peer))
    peer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
