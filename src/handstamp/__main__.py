"""`python -m handstamp` is the `handstamp` command."""

from handstamp.cli import main

if __name__ == "__main__":
    main()
