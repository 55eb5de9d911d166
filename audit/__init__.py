"""Evidence of a round, the audit that recomputes it, and the receipts that miners are given.

    python -m audit export ROUND                    one round's evidence as JSON, for anyone to audit
    python -m audit verify receipt.json             whether a receipt is right

May import all but `status`, `doctor` and the programs. Read: `evidence`, `checks`, `receipts`, `issuer`.
"""
