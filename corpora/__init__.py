"""Programs that build reproducible corpora; they run from the checkout."""

from spirit_jax.cli.running import require

require("corpora")
