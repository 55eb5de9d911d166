"""What every mechanism's rounds share: what they stand on, scheduling, asking, resume.

May import `executor.client`, `chain`, `store` and all below them, and no mechanism by name.
"""
