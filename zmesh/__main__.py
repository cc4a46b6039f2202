"""`python -m zmesh` is `zmesh`."""

from zmesh.cli import main

if __name__ == "__main__":
    main()
