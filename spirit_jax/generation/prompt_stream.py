"""The prompt string that a request generates, as it comes."""

from collections.abc import Sequence

from spirit_jax.generation.stopping import TextReader, find_stop
from spirit_jax.text import TextTokenizer
from spirit_jax.vocab import Vocab

LONGEST_NAME = 32  # characters of what may look like a token


class PromptReader:
    """Turns ids into the prompt string that `SpiritLM.generated_string` returns, part by part.

    A part is given out when no further id can change it: the end of a text is held back while it
    may be the start of a stop string, of a character or of what has to be escaped.

    Attributes:
      size: characters of the string so far, with those that are held back.
    """

    def __init__(self, tokenizer: TextTokenizer, vocab: Vocab, stops: Sequence[str]):
        """For one request.

        Args:
          tokenizer, vocab: of the model.
          stops: stop strings.
        """
        self._reader, self._stops = TextReader(tokenizer, vocab), stops
        self._markup = vocab.markup
        names = {*vocab.token_strings(), *vocab.prompt_tokens()}
        self._starts, self._ends = {name[0] for name in names}, {name[-1] for name in names}
        self._before = ""  # the string up to the reader's text
        self._sent = self.size = 0
        self._is_stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """The part of the string that is known after further ids."""
        for new in ids:
            if self._is_stopped:
                break
            text = self._reader.text
            token = self._reader.add(new)
            if token is not None:
                self._before += self._markup.escape(text) + self._markup.name_of(token)
            at = find_stop(self._reader.text, self._stops)
            if at >= 0:
                self._reader.text, self._is_stopped = self._reader.text[:at], True
        text = self._reader.text
        self.size = len(self._before) + len(self._markup.escape(text))
        return self._give_out(text[: len(text) if self._is_stopped else self._settled(text)])

    def finish(self) -> str:
        """The last part."""
        return self._give_out(self._reader.text)

    def _give_out(self, text: str) -> str:
        string = self._before + self._markup.escape(text)
        new, self._sent = string[self._sent :], max(self._sent, len(string))
        return new

    def _settled(self, text: str) -> int:
        """The length of a text without its end that may still change."""
        size = len(text.rstrip("\ufffd"))
        start = max(text.rfind(each, max(size - LONGEST_NAME, 0), size) for each in self._starts)
        if start >= 0 and not self._ends & set(text[start + 1 : size]):
            size = start
        for length in range(max(map(len, self._stops), default=1) - 1, 0, -1):
            if any(text[:size].endswith(stop[:length]) for stop in self._stops):
                return size - length
        return size
