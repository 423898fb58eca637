"""Convert a stack of open weights: a HuBERT, a k-means, a vocoder and a language model of SlamKit.

spirit-jax convert open --model slprl/SIMS-7B --output MODEL_DIR
spirit-jax convert open --encoder mhubert --kmeans km500.bin --vocoder hifigan.pt
    --language-model speech_lm --text-tokenizer text_tokenizer --output MODEL_DIR

The first form fetches the published parts, but for those that options give. The language model is
of a family that docs/convert.md lists. Its text tokenizer is that of the
text model from which it was trained; the tokens of units and markers come after its ids.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spirit_jax import config, files, model_folder, text_files
from spirit_jax.cli.running import Output, UsageError, run
from spirit_jax.errors import InputError
from spirit_jax.text import load_text_tokenizer
from spirit_jax.vocab import Vocab

from . import hifigan, hubert, llama, llama_config, sources, tokenizer
from .main import DtypeOption, StoredDtype, reading_config, require_one

# SlamKit's names of the tokens after the text, in the order of their ids.
TOKENS = (("hubert", "<Un{}>"), ("speech", "<speech>"), ("text", "<text>"))
PADDING = 40  # samples of silence at both ends of a recording
LAYER = 11


def convert_open(
    encoder: str | Path,
    kmeans: str | Path,
    vocoder: str | Path,
    language_model: str | Path,
    text_tokenizer: str | Path,
    output: str | Path,
    layer: int = LAYER,
    dtype: StoredDtype | None = None,
) -> Vocab:
    """Writes a model folder.

    Args:
      encoder: Hugging Face folder of a HubertModel.
      kmeans: file of the centroids, see `hubert.read_kmeans`.
      vocoder: file or folder, see `hifigan`.
      language_model: Hugging Face folder of a SlamKit model, or of the network in it.
      text_tokenizer: folder of the text model's tokenizer. It may have the tokens of units already.
      output: the model folder to write.
      layer: layer of the encoder whose output is quantized, from 1.
      dtype: of the stored language model; see `llama.convert_llama`.

    Returns:
      The id layout.

    Raises:
      InputError: a part is missing, damaged or of another form, the parts do not fit each other, or
        `output` exists.
    """
    files.refuse_existing(output)
    quantizer = hubert.read_kmeans(kmeans)
    units = quantizer[0].vocab_size
    with files.whole_folder(output) as folder:
        vocab = convert_text_tokenizer(Path(text_tokenizer), Path(language_model), units, folder)
        speech = folder / model_folder.SPEECH_TOKENIZER
        hubert.convert_hubert(speech, hubert.read_hf_encoder(encoder, layer, PADDING), quantizer)
        codes = hifigan.convert_hifigan(vocoder, speech / "hifigan").num_codes
        if codes < units:
            raise InputError(f"{vocoder}: has {codes} units, but {kmeans} has {units}.")
        model_folder.write_speech_tokenizer(speech, "base")
        llama.convert_llama(language_model, folder / "llama", dtype=dtype)
    return vocab


def convert_text_tokenizer(source: Path, model: Path, units: int, output: Path) -> Vocab:
    """Writes `vocab.json` and `text_tokenizer/` of a model folder.

    Args:
      source: folder of the text tokenizer.
      model: folder of the language model.
      units: number of units.
      output: the model folder.

    Returns:
      The id layout.

    Raises:
      InputError: the tokenizer is damaged, or does not fit the language model or the units.
    """
    path = model / "config.json"
    hf = llama_config.read_settings(path)
    tokens = tokenizer.read_source(source)
    text_size, order = _find_layout(source, tokens, units)
    rows = hf.get("vocab_size")
    with reading_config(path):
        vocab = config.from_dict(
            Vocab,
            {
                "text_size": text_size,
                "bos": tokenizer.find_bos(source, tokens),
                "eos": _find_eos(model, hf, tokens),
                "padded_size": rows,
                "hubert_units": units,
                "tokens": order,
                "always_mark_output": True,
            },
            source=f"{source} with {path}",
        )
    target = output / "text_tokenizer"
    text_files.write_tokenizer(source, target, vocab, tokens.settings)
    load_text_tokenizer(target, vocab)  # raises if a token is missing
    config.write(vocab, output / "vocab.json")
    model_folder.list_texts(output)
    return vocab


def _find_layout(
    source: Path, tokens: tokenizer.Source, units: int
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Number of text tokens, and the kinds of tokens after them in the order of their ids."""
    firsts = {
        kind: tokens.ids[first]
        for kind, name in TOKENS
        if (first := name.replace("{}", "0")) in tokens.ids
    }
    if not firsts:
        return tokens.size, TOKENS
    missing = [name for kind, name in TOKENS if kind not in firsts]
    if missing:
        raise InputError(f"{source}: its tokenizer has tokens of units, but no {missing[0]}.")
    count = sum(re.fullmatch(r"<Un\d+>", name) is not None for name in tokens.ids)
    if count != units:
        raise InputError(f"{source}: its tokenizer has {count} units, but the k-means has {units}.")
    order = tuple(sorted(TOKENS, key=lambda item: firsts[item[0]]))
    text_size = min(firsts.values())
    layout = Vocab(text_size, None, (0,), 1 << 24, units, tokens=order)
    for token, name in enumerate(layout.token_strings(), text_size):
        if tokens.ids.get(name) != token:
            raise InputError(
                f"{source}: the token {name} has the id {tokens.ids.get(name)}; expected {token}."
            )
    if layout.size != tokens.size:
        raise InputError(f"{source}: its tokenizer has tokens after those of units and markers.")
    return text_size, order


def _find_eos(model: Path, hf: Mapping[str, Any], tokens: tokenizer.Source) -> list[Any]:
    """EOS ids: those of the language model, else that of the tokenizer."""
    generation = model / "generation_config.json"
    generation = config.read_mapping(generation) if generation.is_file() else {}
    named = tokens.ids.get(tokens.settings.get("eos_token"))
    values = (generation.get("eos_token_id"), hf.get("eos_token_id"), named)
    eos = next((value for value in values if value is not None), None)
    if eos is None:
        raise InputError(f"{model}: neither its config nor the text tokenizer has an EOS.")
    return list(eos) if isinstance(eos, list) else [eos]


def find_parts(
    model: str | Path, encoder: str | Path | None, kmeans: Path | None, vocoder: Path | None
) -> tuple[Path, Path, Path, Path]:
    """Encoder, k-means, vocoder and language model, fetched where they are not given.

    Args:
      model: the language model: a folder, or a name of the hub.
      encoder: a folder or a name of the hub; None for the published one.
      kmeans, vocoder: local files; None for the published ones.

    Raises:
      InputError: a part does not exist or cannot be fetched.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HOME) / "textlesslib"
    language_model = sources.find_folder(model)
    encoder = sources.find_folder(encoder or sources.ENCODER)
    kmeans = kmeans or sources.find_published(sources.KMEANS, cache)
    if vocoder is None:
        for name in sources.HASHES:
            sources.find_published(name, cache)
        vocoder = cache / sources.VOCODER
    return encoder, kmeans, vocoder, language_model


def main(
    output: Output,
    model: Annotated[
        Path | None, typer.Option(help="SlamKit model, a folder or a name of the hub")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="Hugging Face folder of a HubertModel, or a name of the hub")
    ] = None,
    kmeans: Annotated[
        Path | None, typer.Option(help="Centroids, such as a k-means of scikit-learn")
    ] = None,
    vocoder: Annotated[
        Path | None, typer.Option(help="Vocoder of textlesslib: .pt file, or folder")
    ] = None,
    language_model: Annotated[
        Path | None, typer.Option(help="As --model, but nothing is fetched")
    ] = None,
    text_tokenizer: Annotated[
        Path | None, typer.Option(help="Text model's tokenizer, a folder or a name of the hub")
    ] = None,
    layer: Annotated[int, typer.Option(min=1, help="Layer whose output is quantized")] = LAYER,
    dtype: DtypeOption = None,
) -> None:
    """Runs the command that the module's docstring describes."""
    require_one("--model", "--language-model", given=(model, language_model))
    files.refuse_existing(output)
    if model is not None:
        encoder, kmeans, vocoder, language_model = find_parts(model, encoder, kmeans, vocoder)
        text_tokenizer = sources.find_folder(
            text_tokenizer or sources.find_text_tokenizer(language_model), with_weights=False
        )
    parts = {
        "--encoder": encoder,
        "--kmeans": kmeans,
        "--vocoder": vocoder,
        "--text-tokenizer": text_tokenizer,
    }
    for option, path in parts.items():
        if path is None:
            raise UsageError(f"With --language-model, give {option} too.")
    vocab = convert_open(
        encoder, kmeans, vocoder, language_model, text_tokenizer, output, layer, dtype
    )
    extra = vocab.padded_size - vocab.size
    unused = f"; {extra} rows of the embedding have no token" if extra else ""
    print(
        f"wrote {output}: {vocab.text_size} text tokens and {vocab.hubert_units} units{unused}; "
        f"try: spirit-jax encode {output} AUDIO"
    )


if __name__ == "__main__":
    run(main)
