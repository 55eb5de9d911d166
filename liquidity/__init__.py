"""The first mechanism: what positions earn on a pool's real swaps, and what that is worth. Pure.

No clock, no I/O, no random, no float that decides a score. May import `protocol`, `sim`, `scoring` and the codec.
Read: `fast`, `slipstream`, `events`, `replay`, `tape`, `books`, `rounds`, `hindsight`, `live`.
"""
