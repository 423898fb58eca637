"""`python -m spirit_jax.cli` is the command `spirit-jax`."""

from spirit_jax.cli import main

if __name__ == "__main__":
    main()
