"""Runs the command line in a clone: `python run.py --mode=pretrain --workdir=...`."""

from simclr_tf import cli

if __name__ == "__main__":
    cli.main()
