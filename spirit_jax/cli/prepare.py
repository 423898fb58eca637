"""`spirit-jax prepare`: prepares a corpus for training."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import allocator, model_folder
from spirit_jax.cli import checks, processes
from spirit_jax.cli.options import Distributed, PeerTimeout, count_items, parse_shard
from spirit_jax.data.configs import PrepareConfig
from spirit_jax.data.manifest import check_source
from spirit_jax.errors import InputError, plural

Source = Annotated[
    str,
    typer.Argument(help="JSONL manifest, folder of recordings or texts, or tfds:NAME:SPLIT"),
]
Output = Annotated[Path, typer.Argument(help="Folder for the prepared corpus")]
Model = Annotated[
    Path | None,
    typer.Option(help="Model whose speech tokenizer computes units, by folder or name"),
]
ShardOfCorpus = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Prepare part I of N; on a pod the part of the process"),
]
Plot = Annotated[Path | None, typer.Option(help="Plot unit frequencies and lengths to this file")]
Strict = Annotated[bool, typer.Option(help="Exit with status 1 if items were rejected")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON")]
MaxSeconds = Annotated[float, typer.Option(help="Split longer recordings at silences")]
ShardItems = Annotated[int, typer.Option(help="Approximate number of items in a shard")]
Threads = Annotated[int, typer.Option(help="Threads that read recordings")]
BeamOptions = Annotated[
    list[str] | None,
    typer.Option(help="Run as an Apache Beam pipeline with this option (repeatable)"),
]
OverwritePlot = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file of --plot if it exists")
]


def prepare(
    source: Source,
    output: Output,
    model: Model = None,
    shard: ShardOfCorpus = None,
    plot: Plot = None,
    strict: Strict = False,
    as_json: AsJson = False,
    max_seconds: MaxSeconds = 60.0,
    shard_items: ShardItems = 512,
    threads: Threads = 4,
    beam: BeamOptions = None,
    distributed: Distributed = False,
    peer_timeout: PeerTimeout = processes.PEER_TIMEOUT,
    overwrite: OverwritePlot = False,
) -> None:
    """Prepare a corpus for training: units, text and word times of recordings and texts.

    A manifest has a JSON object on each line: id, audio (a path, relative to the manifest), text,
    words ([[word, start, end], ...] in seconds), speaker and document. Required are id, and audio
    or text. An interrupted run resumes. Items that cannot be used are listed, with reasons, in
    OUTPUT/rejects-*.jsonl.
    """
    settings = PrepareConfig(shard_items, max_seconds, threads)
    part, parts = parse_shard(shard) if shard is not None else (0, 0)
    if shard is not None and processes.is_one_of_several(distributed):
        raise InputError(
            "Give either --shard or --distributed, which prepares the part of each process."
        )
    if shard is not None and beam is not None:
        raise InputError("Give either --shard or --beam, which distributes the items itself.")
    check_source(source)
    if model is not None:
        model_folder.find_speech_tokenizer(model)
    checks.output_folder(output)
    if plot is not None:
        checks.new_file(plot, overwrite)
    elif overwrite:
        raise InputError(
            f"--overwrite is for --plot. A corpus is not replaced: remove {output}, or choose "
            "another folder."
        )
    processes.join(distributed, peer_timeout)
    from spirit_jax.data import report

    if beam is not None:
        from spirit_jax.data import beam as beam_lib

        summary = beam_lib.run(source, output, model, settings, list(filter(None, beam)))
    else:
        summary = _prepare(source, output, model, settings, part, parts)
    if plot is not None:
        report.plot(summary, plot)
    print(json.dumps(summary) if as_json else report.describe(summary))
    if summary["rejected"]:
        count = plural(summary["rejected"], "item")
        print(f"rejected {count}: see {output}/rejects-*", file=sys.stderr)
        if strict:
            raise typer.Exit(1)


def _prepare(
    source: str, output: Path, model: Path | None, settings: PrepareConfig, part: int, parts: int
) -> dict:
    """Prepares part 1 to `parts`, or the part of this process if `parts` is 0."""
    import jax

    from spirit_jax.data import prepare as prepare_lib
    from spirit_jax.data import progress
    from spirit_jax.speech_tokenizer import SpeechTokenizer

    allocator.return_large_blocks()
    if not parts:
        part, parts = jax.process_index() + 1, jax.process_count()
    tokenizer = None
    if model is not None:
        tokenizer = SpeechTokenizer.from_pretrained(model, devices=jax.local_devices())
        tokenizer.require_encoder()  # one error instead of one for each item
    with progress.counting("preparing", count_items(source, parts)) as add:
        return prepare_lib.prepare(source, output, tokenizer, settings, part, parts, add)
