"""The command line: what users type. Each command's module says what it takes and calls what does the work."""
