"""Templates are texts with slots: `{prompt}` or `{start}`, and with them `{text}`, `{text_pair}` and `{mask}`, or
`{source}`, `{source_pair}` and `{target}`."""

import re
from dataclasses import dataclass

from bbt.backend import Row, Segment
from bbt.errors import ConfigError, unknown

SLOTS = ("prompt", "start", "text", "text_pair", "mask", "source", "source_pair", "target")
START = "{start}"

_SLOT = re.compile(r"\{([^{}]*)\}")
_PROMPT_AND_SEPARATOR = re.compile(r"(?P<left>\s*)(?:\{prompt\}(?:\s*\.(?=\s|\{mask\}))?(?P<right>\s*))+")


@dataclass(frozen=True)
class Template:
    """Where the soft prompt, the texts and the mask stand; what is written between them, newlines too, is kept.

    A label word is read as it would stand at `{mask}`: after "It was {mask}" with the space before it, as most
    vocabularies of the GPT-2 and RoBERTa kind have their words, and after "It was{mask}" without it.

    The soft tokens stand where `{prompt}` stands; in several places they are shared out in order, the first
    places taking one more if they do not divide evenly. Or they stand at `{start}`: at the very start of the row, even
    before the BOS or [CLS] that a tokenizer puts there, where PEFT has its virtual tokens. For a causal LM `{mask}`
    comes last: the label word is the next token. An encoder-decoder says it first where `{mask}` comes last. Within the
    text T5's sentinel or BART's mask token stands there, and the label word is what the decoder says in its place.

    Where text is to be generated, `{source}`, `{source_pair}` and `{target}` stand for the texts and the answer, which
    comes last; the space left of it belongs to its first word. Only the source is cut where a row is too long.

    Raises:
        ConfigError: an unknown slot; no `{text}`, or not exactly one `{mask}`; with a `{target}` no `{source}`, or
            anything that comes after it; or a `{start}` that is not at the start or stands beside a `{prompt}`.
    """

    source: str
    """The template as it is written, with its slots."""

    def __post_init__(self) -> None:
        slots = _SLOT.findall(self.source)
        for slot in slots:
            if slot not in SLOTS:
                raise ConfigError(f"template {self.source!r}: " + unknown("slot", slot, SLOTS))
        if "target" in slots:
            others = {"text", "text_pair", "mask"} & {*slots}
            ends = self.source.endswith("{target}") and slots.count("target") == 1
            if others or "source" not in slots or not ends:
                raise ConfigError(
                    f"template {self.source!r} needs {{source}}, and {{target}} once and last; {{text}}, {{text_pair}} "
                    "and {mask} do not go with it."
                )
        elif slots.count("mask") != 1 or "text" not in slots:
            raise ConfigError(f"template {self.source!r} needs {{text}} and exactly one {{mask}}.")
        if "start" in slots and (not self.source.startswith(START) or slots.count("start") > 1 or "prompt" in slots):
            raise ConfigError(f"template {self.source!r}: {{start}} comes first, once, and without a {{prompt}}.")

    @property
    def takes_pair(self) -> bool:
        """Whether the template reads `{text_pair}` or `{source_pair}`."""
        return "{text_pair}" in self.source or "{source_pair}" in self.source

    @property
    def takes_target(self) -> bool:
        """Whether text is to be generated at the template's end."""
        return self.source.endswith("{target}")

    @property
    def lead(self) -> str:
        """What is written between the last slot before `{target}` and it."""
        return _SLOT.split(self.source)[-3]

    def manual(self) -> "Template":
        """Return the template without the soft prompt and the full stop that separates it from the text."""
        return Template(_PROMPT_AND_SEPARATOR.sub(_gap, self.source.removeprefix(START)))

    def filled(self, words: str) -> "Template":
        """Return the template with words in the soft prompt's place.

        Raises:
            ConfigError: the words hold braces, which are for slots.
        """
        if "{" in words or "}" in words:
            raise ConfigError(f"an instruction holds no braces, got {words!r}.")
        return Template(self.source.replace("{prompt}", words))

    def at_start(self) -> "Template":
        """Return the manual template with the soft prompt at the very start."""
        return Template(START + self.manual().source)

    def without_label_space(self) -> "Template":
        """Return the template with the mask close to what stands left of it, so that the label word has no space of its
        own. A masked LM that takes the space into its mask token, as RoBERTa does, reads the same row."""
        return Template(self.source.replace(" {mask}", "{mask}"))

    def render(self, text: str, text_pair: str, n_prompt_tokens: int, target: str = "") -> Row:
        """Render one example as segments; with no prompt tokens the manual template is rendered.

        Raises:
            ConfigError: prompt tokens were asked for but the template has no place for them.
        """
        n_places = self.source.count("{prompt}") + self.source.count(START)
        if n_prompt_tokens == 0 and n_places:
            return self.manual().render(text, text_pair, 0, target)
        shares = _shares(n_prompt_tokens, n_places, self.source)
        segments: list[Segment] = []
        for i, piece in enumerate(_SLOT.split(self.source)):
            if i % 2 == 0:
                segments += [Segment("literal", piece)] if piece else []
            elif piece in ("prompt", "start"):
                segments.append(Segment("prompt" if piece == "prompt" else "start", n_tokens=shares.pop(0)))
            elif piece == "mask":
                segments.append(Segment("mask"))
            elif piece == "target":
                segments.append(Segment("target", target))
            elif piece == "source_pair":
                segments.append(Segment("whole", text_pair))
            else:
                segments.append(Segment("text", text_pair if piece == "text_pair" else text))
        return tuple(segments)


def _shares(n_tokens: int, n_places: int, source: str) -> list[int]:
    """Share n tokens out over the prompt's places, in order.

    Raises:
        ConfigError: there are tokens and no place for them.
    """
    if n_tokens and not n_places:
        raise ConfigError(f"template {source!r} has no {{prompt}} slot for the {n_tokens} prompt tokens.")
    return [n_tokens // n_places + (i < n_tokens % n_places) for i in range(n_places)]


def _gap(prompt: re.Match[str]) -> str:
    """Say what stays where a prompt was: nothing at the template's edges, else the space of one side, and rather the
    one that holds a newline."""
    if prompt.start() == 0 or prompt.end() == len(prompt.string):
        return ""
    left, right = prompt["left"], prompt["right"]
    return right if "\n" in right and "\n" not in left else left
