"""Programs that build reproducible corpora; they run from the checkout."""

import importlib.util
import sys

_NEEDED = ("pocketsphinx", "num2words", "sklearn", "pyworld")
_missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _missing and sys.argv[0] == "-m":  # Python sets this while it looks up the module of `python -m`
    sys.exit(
        f"error: {', '.join(_missing)} cannot be imported: the commands of corpora and evaluators "
        "need the extra corpora (pip install -e '.[corpora]')."
    )
