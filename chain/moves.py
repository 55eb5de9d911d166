"""What the events of a real chain's block say of stake that was moved or transferred.

Read next: `subtensor.py` (who reads them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chain.base import StakeMove


def stake_move(block: int, record: Mapping[str, Any], netuid: int, coldkey: str) -> StakeMove | None:
    """The move or transfer within the subnet by this coldkey that an event tells of, else None."""
    event = record.get("event") or record
    name, values = event.get("event_id"), event.get("attributes")
    if event.get("module_id") != "SubtensorModule" or not values:
        return None
    if name == "StakeMoved":
        owner, origin, origin_netuid, dest, dest_netuid, _ = values
        new_owner = owner
    elif name == "StakeTransferred":
        owner, new_owner, origin, origin_netuid, dest_netuid, _ = values
        dest = origin
    elif name == "StakeAndHotkeyTransferred":
        owner, new_owner = values["origin_coldkey"], values["destination_coldkey"]
        origin, dest = values["origin_hotkey"], values["destination_hotkey"]
        origin_netuid, dest_netuid = values["origin_netuid"], values["destination_netuid"]
    else:
        return None
    if owner != coldkey or not int(origin_netuid) == int(dest_netuid) == netuid:
        return None
    return StakeMove(f"{block}-{record.get('extrinsic_idx')}", block, origin, dest, new_owner)
