"""A real pool on a real chain: asked over JSON-RPC, followed block by block, recorded.

    python -m evm record --rpc URL --pool 0x1234 --from 1000 --to 2000 --out FOLDER

web3 lives here and in `executor`. May import `markets` and what that may.
Read: `rpc`, `abi`, `pool`, `events`, `event_file`, `follower`, `market`.
"""
