"""The documentation, and what writes its tables of keys."""
