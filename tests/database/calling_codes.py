"""How long numbers are and how they begin, by calling code, as the phonenumbers library has it: the rows of private.calling_codes.

`python -m tests.database.calling_codes` prints them for a migration. test_opt_out holds the table equal to the installed library.
"""

import re

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata

# Numbers of these forms are also a trunk prefix and another number, and the library reads them as the other one.
NOT_READ_AS_TYPED = {"55": "(?!90)", "375": "(?!8)"}
ALTERNATIVE = re.compile(r"(?:[^|()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))+")  # between the bars outside brackets
LINE_LENGTH = 118


def patterns() -> dict[str, str]:
    """{"49": "[2579]\\d{5,14}|..."}: what may follow each country's calling code; the library reads such a number as it stands."""
    return {code: "|".join(parts) for code, parts in _parts().items()}


def lines() -> list[str]:
    """The same as `code:pattern`, as many to a line as fit. A long pattern is given in parts, each with its code."""
    entries = [f"{code}:{part}" for code, parts in _parts().items() for part in parts]
    lines = [entries[0]]
    for entry in entries[1:]:
        if len(lines[-1]) + 1 + len(entry) <= LINE_LENGTH:
            lines[-1] += " " + entry
        else:
            lines.append(entry)
    return lines


def _parts() -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for code, regions in sorted(COUNTRY_CODE_TO_REGION_CODE.items()):
        metadata = PhoneMetadata.metadata_for_region(regions[0])
        if metadata is None or metadata.general_desc is None:
            continue  # 800, 870, ...: networks of no country, which are never called
        pattern = str(metadata.general_desc.national_number_pattern).replace("(?:", "(")
        for alternative in ALTERNATIVE.findall(pattern):
            mine = parts.setdefault(str(code), [])
            alternative = NOT_READ_AS_TYPED.get(str(code), "") + alternative
            if mine and len(str(code)) + 2 + len(mine[-1]) + len(alternative) <= LINE_LENGTH:
                mine[-1] += "|" + alternative
            else:
                mine.append(alternative)
    return parts


if __name__ == "__main__":
    print("\n".join(lines()))
