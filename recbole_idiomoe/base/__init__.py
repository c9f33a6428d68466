"""What every other room may use: errors, files, processes, folders of runs, the command line."""

__version__ = "0.1.0"
