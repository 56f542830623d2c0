"""``vmmsim`` and ``python -m vmmsim``."""

import sys


def main() -> None:
    """Run the command line given to this process and exit with its code."""
    try:
        from vmmsim.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before the first command, or a second one while the first is being heeded
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
