"""`python -m batchgauge` is the console command."""

from batchgauge.cli import main

if __name__ == "__main__":
    main()
