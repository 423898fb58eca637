"""What a run config asks for as "made:...": a random model and corpora, in the run's folder.

For trying out a training with nothing at hand: `model: "made:base"`, and sources with paths such as
"made:300", which have that many utterances. Importing this is cheap: JAX comes later.
"""

import dataclasses
import shutil
from pathlib import Path

from spirit_jax import files, lock
from spirit_jax.data.configs import SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.training.lm.config import LmRunConfig

PREFIX = "made:"
KINDS = ("base", "expressive")
MOST_UTTERANCES = 1_000_000
SEEDS = {"data": 0, "eval_sources": 1}


def resolve(config: LmRunConfig) -> LmRunConfig:
    """The config with folders of the run in place of "made:..."; writes nothing.

    Raises:
      InputError: what is to be made is not known.
    """
    return _visit(config, lambda *_: None)


def write(config: LmRunConfig) -> LmRunConfig:
    """Writes what is asked for and not there yet, each folder whole or not at all.

    Of several processes, all call this and the first one writes.

    Returns:
      The same as `resolve`.

    Raises:
      InputError: what is to be made is not known, the folder cannot be written, or another process
        trains in it.
    """
    resolved = resolve(config)
    if resolved != config:
        from spirit_jax.training import distributed

        distributed.from_first(lambda: _write(config))
    return resolved


def _write(config: LmRunConfig) -> None:
    with lock.hold(config.run_dir):
        _visit(config, lambda create, folder, *rest: create(folder, *rest))


def _visit(config: LmRunConfig, visit) -> LmRunConfig:
    """`resolve`, calling `visit` with a function that writes and its arguments, a folder first."""
    made = Path(config.run_dir) / "made"

    def resolve_source(source: SourceConfig, seed: int) -> SourceConfig:
        if not source.path.startswith(PREFIX):
            return source
        count = source.path.removeprefix(PREFIX)
        digits = count if count.isascii() and count.isdigit() and len(count) < 9 else "0"
        if not 1 <= int(digits) <= MOST_UTTERANCES:
            raise InputError(
                f"'{source.path}' is not a corpus that can be made; write {PREFIX}200, say, for "
                f"200 utterances (at most {MOST_UTTERANCES})."
            )
        folder = made / f"corpus-{seed}-{int(digits)}"
        visit(_write_corpus, folder, int(digits), seed)
        return dataclasses.replace(source, path=str(folder))

    if config.model.startswith(PREFIX):
        kind = config.model.removeprefix(PREFIX)
        if kind not in KINDS:
            known = " or ".join(PREFIX + name for name in KINDS)
            raise InputError(f"model is '{config.model}', expected {known} or a model folder.")
        visit(_write_model, made / kind, kind)
        config = dataclasses.replace(config, model=str(made / kind))
    sources, held_out = (
        tuple(resolve_source(source, SEEDS[name]) for source in sources)
        for name, sources in (("data", config.data.sources), ("eval_sources", config.eval_sources))
    )
    data = dataclasses.replace(config.data, sources=sources)
    return dataclasses.replace(config, data=data, eval_sources=held_out)


def _write_corpus(folder: Path, count: int, seed: int) -> None:
    from spirit_jax.data.toy import write_toy_corpus

    write_toy_corpus(folder, count, seed)


def _write_model(folder: Path, kind: str) -> None:
    from spirit_jax.random_model import write_random_model

    if (folder / "vocab.json").is_file():  # written last, by earlier versions too
        return
    if folder.is_dir():  # what an earlier version left when it was killed
        shutil.rmtree(folder)
    with files.whole_folder(folder) as unfinished:
        write_random_model(unfinished, kind)
