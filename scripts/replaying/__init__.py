"""Runs that are repeated from their record, for register.py --replay."""
