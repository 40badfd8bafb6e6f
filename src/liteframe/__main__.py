"""``python -m liteframe`` is ``liteframe``."""

from liteframe.cli import main

if __name__ == "__main__":
    main()
