"""The command `spirit-jax`, with one module for each subcommand.

In spirit_jax only this package reads environment variables. JAX and the models are imported when a
command needs them, so help and errors in the arguments appear at once.
"""

from spirit_jax.cli import interrupts


def main() -> None:
    """Runs the command line; see `running.call`."""
    interrupts.end_at_once()
    from spirit_jax.cli import commands, options, running

    options.prepare_environment()
    running.call(commands.app, "spirit-jax")
