"""What every other room may use: errors, files, processes, folders of runs, the command line."""
