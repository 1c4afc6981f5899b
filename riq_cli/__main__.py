"""`python -m riq_cli`."""

from riq_cli.cli import main

if __name__ == "__main__":
    main()
