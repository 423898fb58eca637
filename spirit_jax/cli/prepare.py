"""`spirit-jax prepare`: recordings and text to a corpus to train on."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax.cli.options import count_items, join_processes
from spirit_jax.errors import InputError


def prepare(
    source: Annotated[
        str,
        typer.Argument(help="JSONL manifest, folder of recordings or texts, or tfds:NAME:SPLIT"),
    ],
    output: Annotated[Path, typer.Argument(help="Folder for the prepared corpus")],
    model: Annotated[
        Path | None, typer.Option(help="Model folder whose speech tokenizer makes units")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="The I-th of N parts; by process on a pod")
    ] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw units and lengths to this file")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 1 if items were rejected")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
    max_seconds: Annotated[float, typer.Option(help="Split longer recordings at silences")] = 60.0,
    shard_items: Annotated[int, typer.Option(help="Items of a shard, about")] = 512,
    threads: Annotated[int, typer.Option(help="That read recordings")] = 4,
    beam: Annotated[
        list[str] | None,
        typer.Option(help="Run as an Apache Beam pipeline; options such as --runner=DirectRunner"),
    ] = None,
    distributed: Annotated[
        bool, typer.Option(help="One of several processes, as a pod's or a cluster's says")
    ] = False,
) -> None:
    """Turn recordings and text into a corpus to train on: units, text and word times.

    A manifest has a JSON object a line: id, audio (a path from the manifest's folder), text, words
    ([[word, start, end], ...] in seconds), speaker and document; id and one of audio and text are
    needed. A run that was stopped goes on where it was. Items that cannot be used are listed, with
    reasons, in OUTPUT/rejects-*.jsonl.
    """
    if distributed or "JAX_COORDINATOR_ADDRESS" in os.environ:
        join_processes()
    from spirit_jax.data import prepare as prepare_lib
    from spirit_jax.data import progress, report

    settings = prepare_lib.PrepareConfig(shard_items, max_seconds, threads)
    part, parts = _parse_shard(shard)
    if beam is not None:
        if shard:
            raise InputError("--shard and --beam: a Beam pipeline shares the items out itself.")
        from spirit_jax.data import beam as beam_lib

        told = beam_lib.run(source, output, model, settings, [option for option in beam if option])
    else:
        from spirit_jax.speech_tokenizer import SpeechTokenizer

        tokenizer = SpeechTokenizer.from_pretrained(model) if model is not None else None
        with progress.counting("preparing", count_items(source, parts)) as done:
            told = prepare_lib.prepare(source, output, tokenizer, settings, part, parts, done)
    if plot is not None:
        report.plot(told, plot)
    print(json.dumps(told) if as_json else report.describe(told))
    if told["rejected"]:
        print(f"{told['rejected']} items were rejected: see {output}/rejects-*", file=sys.stderr)
        if strict:
            raise typer.Exit(1)


def _parse_shard(shard: str) -> tuple[int, int]:
    """(part, parts) of "I/N"; by process where it is not given."""
    import jax

    if not shard:
        return jax.process_index() + 1, jax.process_count()
    part, separator, parts = shard.partition("/")
    if not separator or not part.isdigit() or not parts.isdigit():
        raise InputError(f"--shard is '{shard}'; expected I/N, such as 1/4.")
    return int(part), int(parts)
