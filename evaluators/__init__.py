"""Programs that measure models trained on the corpora of `corpora`; they run from the checkout."""

from spirit_jax.cli.running import require

require("corpora")
