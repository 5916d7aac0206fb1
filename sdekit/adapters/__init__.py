"""Objects written for other libraries, solved here as they are."""
