"""``vmmsim`` and ``python -m vmmsim``."""

import sys


def main() -> None:
    """Run the command line given to this process and exit with its code."""
    from vmmsim.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
