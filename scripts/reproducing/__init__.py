"""The papers' tables, trained and measured anew: a module a method, called by ``scripts/reproduce.py``."""
