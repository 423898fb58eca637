"""`spirit-jax align`: when each word of a corpus is spoken."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spirit_jax import folders
from spirit_jax.cli import checks
from spirit_jax.cli.options import count_items
from spirit_jax.errors import InputError


def align(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="JSONL manifest with id, audio and text")],
    output: Annotated[Path, typer.Argument(help="The manifest to write, with words")],
    model: Annotated[
        Path | None, typer.Option(help="CTC aligner, as python -m convert.ctc writes")
    ] = None,
    textgrid: Annotated[
        Path | None, typer.Option(help="Instead: folder of MFA's ID.TextGrid files")
    ] = None,
    whisperx: Annotated[
        Path | None, typer.Option(help="Instead: folder of WhisperX's ID.json files")
    ] = None,
    tier: Annotated[str, typer.Option(help="Of the TextGrids")] = "words",
    min_score: Annotated[
        float | None, typer.Option(help="Reject what aligns worse (0 is best)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Recordings aligned at a time")] = 16,
) -> None:
    """Find when each word of a corpus is spoken, or take it from another tool's files.

    Items that cannot be aligned are listed, with reasons, in OUTPUT.rejects.jsonl. A run that was
    stopped goes on where it was.
    """
    ways = {"--model": model, "--textgrid": textgrid, "--whisperx": whisperx}
    if sum(way is not None for way in ways.values()) != 1:
        raise InputError(f"Word times come from one of {', '.join(ways)}; give one of them.")
    checks.existing(source)
    checks.new_file(output)
    if model is not None:
        folders.find_model(model)
    else:
        checks.existing(textgrid or whisperx)
        idle = "min_score", "batch_size"
        checks.refuse_idle(context, idle, "Word times of other tools are taken as they are")
    if textgrid is None:
        checks.refuse_idle(context, ("tier",), "There are no TextGrids")
    from spirit_jax.data import progress
    from spirit_jax.data.align import Aligner
    from spirit_jax.data.align_corpus import align_corpus

    aligner = Aligner.from_pretrained(model) if model is not None else None
    with progress.counting("aligning", count_items(str(source), 1)) as done:
        counted = 0

        def tell(total: int) -> None:
            nonlocal counted
            done(total - counted)
            counted = total

        told = align_corpus(
            source,
            output,
            aligner,
            textgrid=textgrid,
            whisperx=whisperx,
            tier=tier,
            min_score=min_score,
            batch_size=batch_size,
            progress=tell,
        )
    print(f"{output}: {told.aligned} items with word times, {told.rejected} rejected")
    if told.rejected:
        print(f"the reasons are in {output}.rejects.jsonl", file=sys.stderr)
    for note in told.notes():
        print(f"warning: {note}", file=sys.stderr)
