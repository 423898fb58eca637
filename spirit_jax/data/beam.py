"""Preparing a corpus as an Apache Beam pipeline, for fleets and cloud runners.

A portion of items, which makes a shard, is an element; a worker loads the speech tokenizer once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spirit_jax.data import prepare
from spirit_jax.errors import InputError
from spirit_jax.speech_tokenizer import SpeechTokenizer

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise InputError("--beam needs Apache Beam; pip install 'spirit-jax[beam]'.") from error


class MakeShard(apache_beam.DoFn):
    """Prepares portions; see `prepare.make_shard`."""

    def __init__(self, output: Path, model: Path | None, config: prepare.PrepareConfig):
        self._output, self._model, self._config = output, model, config
        self._tokenizer = None

    def setup(self) -> None:
        """Loads the speech tokenizer, once a worker."""
        if self._model is not None:
            self._tokenizer = SpeechTokenizer.from_pretrained(self._model)

    def process(self, portion: prepare.Portion):
        """Writes the shard; yields how many items it is made of."""
        prepare.make_shard(portion, self._output, self._tokenizer, self._config)
        yield len(portion.items)


def run(
    source: str,
    output: str | Path,
    model: str | Path | None,
    config: prepare.PrepareConfig,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Prepares a source as one part; the corpus and the report are those of `prepare.prepare`.

    Args:
      source, output: see `prepare.prepare`; workers must reach both.
      model: the model folder, None if the source is text alone.
      config: how.
      options: Beam's, such as "--runner=DirectRunner".

    Raises:
      InputError: as `prepare.prepare` does.
    """
    output, model = Path(output), None if model is None else Path(model)
    tokenizer = SpeechTokenizer.from_pretrained(model) if model is not None else None
    with prepare.hold_part(output, 1):
        made_of = prepare.begin(output, source, tokenizer, config, parts=1)
        waiting = list(prepare.portions(source, config, 1, 1))
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(waiting)
                | apache_beam.Reshuffle()
                | apache_beam.ParDo(MakeShard(output, model, config))
            )
        return prepare.finish(output, source, made_of, part=1)
