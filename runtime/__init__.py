"""What every process needs around its work: options, passwords, logging, signals, a database.

Knows nothing of rounds or chains. May import `protocol`; `db` brings aiosqlite, the rest the standard library alone.
"""
