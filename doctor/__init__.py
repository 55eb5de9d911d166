"""What a person runs to know before it counts: the doctor, reach, a strategy checked and backtested.

    python -m doctor                                what is needed to run, each with its fix

Above all rooms: it looks into each.
"""
