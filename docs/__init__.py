"""Documentation: pages, and the code that makes their tables."""
