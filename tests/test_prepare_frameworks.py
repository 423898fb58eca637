"""Preparing with TensorFlow Datasets and Apache Beam.

`pytest -m frameworks` runs these tests alone: they import libraries that nothing else imports.
"""

import numpy as np
import pytest
from tones import write_tones

from spirit_jax import SpeechTokenizer
from spirit_jax.data import report
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.corpus import Corpus
from spirit_jax.data.manifest import read_source
from spirit_jax.data.prepare import prepare

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def tokenizer(expressive_folder):
    return SpeechTokenizer.from_pretrained(expressive_folder)


def read(folder):
    return [utterance.to_bytes() for utterance in Corpus(folder)]


def test_a_tensorflow_dataset(tokenizer, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("pydub")

    class Tones(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "speech": tfds.features.Audio(sample_rate=8000),
                "text": tfds.features.Text(),
                "speaker_id": tfds.features.Scalar(dtype=np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(3):
                wave = (3000 * np.sin(np.arange(8000) * 0.1 * (number + 1))).astype(np.int64)
                yield (
                    number,
                    {"id": f"t{number}", "speech": wave, "text": "beep", "speaker_id": number},
                )

    builder = Tones(data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    items = sorted(read_source(f"tfds:{builder.data_path}:train"), key=lambda item: item.id)
    assert [item.id for item in items] == ["t0", "t1", "t2"]
    assert [item.speaker for item in items] == ["0", "1", "2"]
    units = tokenizer.encode(items[0].audio)
    figures = prepare(f"tfds:{builder.data_path}:train", tmp_path / "corpus", tokenizer)
    utterances = {utterance.id: utterance for utterance in Corpus(tmp_path / "corpus")}
    np.testing.assert_array_equal(utterances["t0"].units.hubert, units.hubert)
    assert utterances["t0"].seconds == pytest.approx(1.0) and utterances["t0"].text == "beep"
    assert figures["items"] == 3


def test_a_beam_pipeline_makes_the_same_corpus(expressive_folder, tokenizer, tmp_path):
    pytest.importorskip("apache_beam")
    from spirit_jax.data import beam

    (tmp_path / "tones").mkdir()
    source, config = str(write_tones(tmp_path / "tones", 5)), PrepareConfig(shard_items=2)
    plain = prepare(source, tmp_path / "plain", tokenizer, config)
    figures = beam.run(
        source, tmp_path / "beam", expressive_folder, config, ["--runner=DirectRunner"]
    )
    assert read(tmp_path / "beam") == read(tmp_path / "plain")
    assert figures == plain
    assert report.describe(figures)
