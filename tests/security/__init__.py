"""Hostile files, made by code: what strangers may send, for `tests/security/test_security.py`."""
