"""The command `spirit-jax`, with one module for each subcommand.

Only this package reads the environment. JAX and the models are imported inside the commands, so
help and errors appear at once.
"""

from spirit_jax.cli import interrupts


def main() -> None:
    """Runs the command line; see `running.call`."""
    interrupts.end_at_once()
    from spirit_jax.cli import commands, options, running

    options.prepare_environment()
    running.call(commands.app, "spirit-jax")
