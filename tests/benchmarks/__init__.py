"""Measurements that the documentation reports, and their tests."""
