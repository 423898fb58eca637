"""Scripts that build corpora anyone can build again; they run from the checkout."""
