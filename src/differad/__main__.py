"""`python -m differad` is the `differad` command."""

from differad.cli.main import main

if __name__ == "__main__":
    main()
