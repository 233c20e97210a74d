"""`python -m ontogeny` is the command `ontogeny`."""

from ontogeny.cli import main

if __name__ == "__main__":
    main()
