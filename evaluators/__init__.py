"""Programs that measure models trained on the corpora of `corpora`; they run from the checkout."""

import corpora  # noqa: F401  # first: it names the packages of the extra that are not installed
