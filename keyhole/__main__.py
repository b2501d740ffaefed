"""`python -m keyhole`: the command line without its script on the path."""

from keyhole.main import main

if __name__ == "__main__":
    main()
