"""The executor bot, which holds a vault's key and carries out live decisions, each at most once.

    python -m executor serve|status|pause|resume|approve

May import `evm`, `chain.notify` and all below them. Read: `door`, `execution`, `drafting`, `plan`, `wallet`,
`readback`, `journal`; `client` is the validator's side.
"""
