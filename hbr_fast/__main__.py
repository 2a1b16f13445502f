"""`python -m hbr_fast` is `hbr-fast`."""

from hbr_fast.cli import main

if __name__ == "__main__":
    main()
