"""`python -m ontogeny` is the command `ontogeny`."""

from ontogeny.cli import program

if __name__ == "__main__":
    program()
