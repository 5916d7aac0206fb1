"""The command line: `sdekit demo`, `sdekit list`, `sdekit version`."""
