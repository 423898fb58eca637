"""Synthetic models and corpora for test runs: "made:..." in a run config.

`model: "made:base"` is a small random model, and a source with the path "made:300" a corpus of 300
random utterances. Both are written to the run folder. This module imports no JAX.
"""

import dataclasses
from pathlib import Path

from spirit_jax import files
from spirit_jax.data.configs import SourceConfig
from spirit_jax.errors import InputError
from spirit_jax.files import lock
from spirit_jax.training.lm.config import LmRunConfig

PREFIX = "made:"
KINDS = ("base", "expressive")
MAX_UTTERANCES = 1_000_000
SEEDS = {"data": 0, "eval_sources": 1}


def resolve(config: LmRunConfig) -> LmRunConfig:
    """The config with folders of the run in place of "made:..."; writes nothing.

    Raises:
      InputError: the name after "made:" is unknown.
    """
    return _visit(config, lambda *_: None)


def write(config: LmRunConfig) -> LmRunConfig:
    """Writes the synthetic models and corpora that do not exist yet.

    In a run of several processes all call this, and the first one writes.

    Returns:
      The same as `resolve`.

    Raises:
      InputError: the name after "made:" is unknown, the folder cannot be written, or another
        process uses the run folder.
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
    """As `resolve`; calls `visit(create, folder, *arguments)` for each folder."""
    parent = files.as_path(config.run_dir) / "made"

    def resolve_source(source: SourceConfig, seed: int) -> SourceConfig:
        if not source.path.startswith(PREFIX):
            return source
        count = source.path.removeprefix(PREFIX)
        digits = count if count.isascii() and count.isdigit() and len(count) < 9 else "0"
        if not 1 <= int(digits) <= MAX_UTTERANCES:
            raise InputError(
                f"'{source.path}' is not a synthetic corpus; write for example {PREFIX}200 for 200 "
                f"utterances (at most {MAX_UTTERANCES})."
            )
        folder = parent / f"corpus-{seed}-{int(digits)}"
        visit(_write_corpus, folder, int(digits), seed)
        return dataclasses.replace(source, path=str(folder))

    if config.model.startswith(PREFIX):
        kind = config.model.removeprefix(PREFIX)
        if kind not in KINDS:
            known = " or ".join(PREFIX + name for name in KINDS)
            raise InputError(f"model is '{config.model}', expected {known} or a model folder.")
        visit(_write_model, parent / kind, kind)
        config = dataclasses.replace(config, model=str(parent / kind))
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
    if folder.is_dir():  # the remains of a killed process of an earlier version
        files.remove_tree(folder)
    with files.whole_folder(folder) as unfinished:
        write_random_model(unfinished, kind)
