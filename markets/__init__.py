"""Where a pool's events come from when they lie in memory: recordings and the market model.

    python -m markets replay PATH                   replay a recording; exits 0 only when every digit agrees
    python -m markets import PATH --out FOLDER      complete a recording: find the call behind each swap that lacks it

May import the pure core, `wire.codec` and `runtime`. Read: `base` (what a market is), `memory`, `recordings`, `model`.
"""
