"""Signed HTTP between validators and miners: the JSON codec, signatures, the client, the server.

`codec` is pure and imports `protocol` alone; the others bring bittensor and aiohttp.
"""
