"""`python -m fathom`: the command line."""

from fathom.cli import main

if __name__ == "__main__":
    main()
