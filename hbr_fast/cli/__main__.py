"""`python -m hbr_fast.cli` is `hbr-fast`."""

from hbr_fast.cli import main

if __name__ == "__main__":
    main()
