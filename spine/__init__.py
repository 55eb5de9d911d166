"""What every mechanism's rounds share: what they stand on, scheduling, asking, resume.

May import `executor.client`, `chain`, `store` and all below them, and names a mechanism nowhere but in the list of
those that come with the program (`mechanism.py`).
"""
