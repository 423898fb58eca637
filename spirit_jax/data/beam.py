"""Prepares a corpus as an Apache Beam pipeline, for clusters and cloud runners.

An element is a portion of items, which gives one shard. A worker loads the speech tokenizer once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spirit_jax import files
from spirit_jax.data import prepare
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.errors import InputError
from spirit_jax.speech_tokenizer import SpeechTokenizer

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise InputError("--beam needs Apache Beam; pip install 'spirit-jax[beam]'.") from error


class MakeShard(apache_beam.DoFn):
    """Prepares portions; see `prepare.make_shard`."""

    def __init__(self, output: Path, model: Path | None, config: PrepareConfig):
        self._output, self._model, self._config = output, model, config
        self._tokenizer = None

    def setup(self) -> None:
        """Loads the speech tokenizer, once a worker."""
        if self._model is not None:
            self._tokenizer = SpeechTokenizer.from_pretrained(self._model)

    def process(self, portion: prepare.Portion):
        """Writes the shard; yields the number of its items."""
        prepare.make_shard(portion, self._output, self._tokenizer, self._config)
        yield len(portion.items)


def run(
    source: str,
    output: str | Path,
    model: str | Path | None,
    config: PrepareConfig,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Prepares a source as one part, with the same result as `prepare.prepare`.

    Args:
      source: see `prepare.prepare`; all workers must be able to read it.
      output: see `prepare.prepare`; all workers must be able to write to it.
      model: the model folder; None if the source is text only.
      config: see `prepare.prepare`.
      options: pipeline options of Beam, such as "--runner=DirectRunner".

    Returns:
      The report; see `report.summarise`.

    Raises:
      InputError: see `prepare.prepare`.
    """
    output, model = files.as_path(output), None if model is None else files.as_path(model)
    tokenizer = SpeechTokenizer.from_pretrained(model) if model is not None else None
    with prepare.hold_part(output, 1):
        inputs = prepare.write_inputs(output, source, tokenizer, config, parts=1)
        portions = list(prepare.portions(source, config, 1, 1))
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(portions)
                | apache_beam.Reshuffle()
                | apache_beam.ParDo(MakeShard(output, model, config))
            )
        return prepare.finish(output, source, inputs, part=1)
