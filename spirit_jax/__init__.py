"""Spirit LM in JAX and Flax: reads, hears, writes and speaks in one stream of tokens."""
