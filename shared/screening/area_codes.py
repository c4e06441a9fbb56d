"""North American area codes that are in service and that the library `phonenumbers` does not know.

When a new version of the library knows a code, its line here goes: a test names it.
"""

from datetime import date
from typing import Final, NamedTuple

_EASTERN: Final = "America/New_York"
_CENTRAL: Final = "America/Chicago"
_PACIFIC: Final = "America/Los_Angeles"


class AreaCode(NamedTuple):
    """`state` is the ISO 3166-2 code without the country; `zones` are all zones of the area."""

    state: str
    zones: tuple[str, ...]
    in_service: str


AREA_CODES_READ_ON: Final = date(2026, 11, 28)
"""The day on which the table was last compared with its sources."""
AREA_CODES: Final = {
    "357": AreaCode("CA", (_PACIFIC,), "2025-03-26"),  # overlay of 559; California PUC
    "436": AreaCode("OH", (_EASTERN,), "2024-03"),  # overlay of 440; nyaruka/phonenumbers#227
    "457": AreaCode("LA", (_CENTRAL,), "2025-09-25"),  # overlay of 318; Louisiana PSC
    "465": AreaCode("NY", (_EASTERN,), "2026-06-18"),  # overlay of 718, 347, 917, 929; New York PSC
    "471": AreaCode("MS", (_CENTRAL,), "2026-01-30"),  # overlay of 662; Mississippi PSC
    "483": AreaCode("AL", (_CENTRAL,), "2026-02-23"),  # overlay of 334; Alabama PSC
    "565": AreaCode("GA", (_EASTERN,), "2025"),  # overlay of 912; one report, nyaruka/phonenumbers#212
    "621": AreaCode("TX", (_CENTRAL,), "2025-01-23"),  # overlay of 713; NBC DFW
    "624": AreaCode("NY", (_EASTERN,), "2023-11-16"),  # overlay of 716; jackocnr/intl-tel-input#2005
    "679": AreaCode("MI", ("America/Detroit",), "2025-11-07"),  # overlay of 313; Michigan PSC, Verizon
    "729": AreaCode("TN", (_EASTERN, _CENTRAL), "2025-09-05"),  # overlay of 423; einpresswire
    "837": AreaCode("CA", (_PACIFIC,), "2025-01-31"),  # overlay of 530; California PUC
    "861": AreaCode("IL", (_CENTRAL,), "2023-02-24"),  # overlay of 309; daviddrysdale/python-phonenumbers#318
    "924": AreaCode("MN", (_CENTRAL,), "2024-08-30"),  # overlay of 507; Minnesota PUC
}
