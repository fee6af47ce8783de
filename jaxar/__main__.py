"""`python -m jaxar VERB ...` is the command line."""

from jaxar.main import main

if __name__ == "__main__":
    main()
