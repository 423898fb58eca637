"""Programs that plan runs on TPUs without having one; they run from the checkout."""

from spirit_jax.cli.running import require

require()
