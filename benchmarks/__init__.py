"""Programs that measure speed; they run from the checkout."""

from spirit_jax.cli.running import require

require()
