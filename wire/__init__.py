"""Signed HTTP between validators and miners: text and JSON, signatures, the client, the server.

`text` is standard library only, `codec` adds `protocol` alone, `body` aiohttp; the others bring bittensor too.
"""
