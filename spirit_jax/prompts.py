"""Prompts of a model: from text and speech to a prompt string, and from it to token ids."""

import warnings
from collections.abc import Callable, Sequence, Sized
from pathlib import Path

from spirit_jax import bucketing, markup, units
from spirit_jax.audio import Audio
from spirit_jax.errors import InputError, InputWarning
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.speech_tokenizer import SpeechTokenizer
from spirit_jax.text import TextTokenizer, check_unicode
from spirit_jax.units import Units
from spirit_jax.vocab import Modality, Vocab

Input = tuple[Modality | str, str | Audio | Units]


class PromptEncoder:
    """Builds and encodes the prompts of a model."""

    def __init__(
        self,
        folder: str | Path,
        config: LlamaConfig,
        vocab: Vocab,
        text_tokenizer: TextTokenizer,
        speech_tokenizer: Callable[[], SpeechTokenizer],
    ):
        """Creates it.

        Args:
          folder: the model folder, for messages.
          config: of the language model; it has the number of positions.
          vocab: of the model.
          text_tokenizer: of the model.
          speech_tokenizer: returns that of the model; raises `InputError` if there is none.
        """
        self._folder, self._config, self._vocab = folder, config, vocab
        self._text_tokenizer, self._speech_tokenizer = text_tokenizer, speech_tokenizer
        self._tokens = set(vocab.prompt_tokens())
        self._warned_of_length = False

    def build(
        self, inputs: Sequence[Input], output_modality: Modality | str = Modality.ARBITRARY
    ) -> str:
        """The prompt string of inputs; see `SpiritLM.build_prompt`."""
        strings = []
        for item in bucketing.as_list(inputs, "inputs"):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise InputError(
                    f"An input is a pair such as ('text', 'hello'), not {str(item)[:40]!r}."
                )
            modality, content = Modality.of(item[0]), item[1]
            if modality is Modality.ARBITRARY:
                raise InputError("An input is text or speech, not arbitrary.")
            if modality is Modality.SPEECH:
                content = self._speech_string(content)
            elif not isinstance(content, str):
                raise InputError(f"A text input must be a string, not {type(content).__name__}.")
            else:
                check_unicode(content)
            strings.append((modality, content))
        return units.build_prompt(
            strings,
            Modality.of(output_modality),
            self._vocab.markup,
            self._vocab.always_mark_output,
        )

    def choose(
        self, inputs: Sequence[Input], prompt: str | None, output_modality: Modality | str
    ) -> str:
        """The prompt, or that of the inputs; raises `InputError` if both are given."""
        if prompt is None:
            return self.build(inputs, output_modality)
        if not isinstance(inputs, Sized) or len(inputs):
            raise InputError("Give either inputs or a prompt, not both.")
        return prompt

    def _speech_string(self, content: str | Audio | Units) -> str:
        """The unit string of a speech input."""
        notation = self._vocab.markup
        if isinstance(content, str) and units.is_unit_string(content, notation):
            parts = notation.parse(content)
            # Raises for anything but units, markers and white space.
            units.from_string(markup.render(parts))
            # Only the units are kept: white space and markers would change the prompt.
            return "".join(part.string for part in parts if markup.UNIT.match(part.string))
        encoded = (
            content if isinstance(content, Units) else self._speech_tokenizer().encode(content)
        )
        if not len(encoded):
            raise InputError("A speech input has no units: it is shorter than 80 ms.")
        string = self._speech_tokenizer().to_string(encoded)
        if not isinstance(content, Units) and self._speech_tokenizer().is_blank(encoded):
            if any(part.string not in self._tokens for part in markup.parse(string)):
                raise InputError("A speech input has no units: no speech was noticed in it.")
        return string

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt string; raises `InputError` for a unit that the model does not have.

        A warning says once that a prompt is longer than the sequences of the training.
        """
        tokens = self._text_tokenizer.encode(prompt)
        for part in self._vocab.markup.parse(prompt):
            if part.is_token and part.string not in self._tokens:
                raise InputError(
                    f"{part.string} is not a unit of this model ({self._folder}). If it is text, "
                    "give it as a text input."
                )
        trained = self._config.trained_positions
        if 0 < trained < len(tokens) and not self._warned_of_length:
            self._warned_of_length = True
            warnings.warn(
                f"A prompt has {len(tokens)} tokens, but the model was trained on sequences of at "
                f"most {trained}; the output may be poor.",
                InputWarning,
                stacklevel=2,
            )
        return tokens

    def encode_pair(self, pair: tuple[str, str]) -> tuple[list[int], int]:
        """(ids of context and continuation, index of the continuation's first token).

        Raises:
          InputError: `pair` is not (context, continuation), the continuation has no tokens, or the
            pair has more tokens than the model has positions.
        """
        if not isinstance(pair, tuple | list) or [type(part) for part in pair] != [str, str]:
            raise InputError(f"A pair is a context and a continuation, not {str(pair)[:40]!r}.")
        context, continuation = pair
        context_tokens = self._text_tokenizer.encode(context)
        tokens = self.encode(self._vocab.markup.join(pair))
        self.check_length(tokens)
        # A token may have the last characters of the context and the first of the continuation.
        is_same = [a == b for a, b in zip(context_tokens, tokens, strict=False)]
        start = is_same.index(False) if False in is_same else len(is_same)
        start = max(start, 1)  # the first token, which is BOS in most models, has no probability
        if start >= len(tokens):
            raise InputError(f"The continuation {continuation[:40]!r} has no tokens.")
        return tokens, start

    def check_length(self, tokens: Sequence[int]) -> None:
        """Raises `InputError` if there are more tokens than positions."""
        positions = self._config.max_positions
        if len(tokens) > positions:
            raise InputError(
                f"A prompt has {len(tokens)} tokens, but the model has {positions} positions."
            )
