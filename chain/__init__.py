"""Bittensor: the ledger that says who takes part and takes the weights, real or embedded, and who is told of trouble.

    python -m chain notify TEXT                     send one alert to the webhook

The SDK lives here and in `wire`. May import `store` and all below it. Read: `base`, `local` on `ledger`, `subtensor` on
`wallets`, `opening`, `weights`, `notify`; and what `stake.py` stands on: `journal`, `sweeping`, `loop`.
"""
