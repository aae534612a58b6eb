"""The formats of strings that a JSON schema may name (`date`, `email`, `ipv6` ...) as patterns, by the standards that it names. Pure.

A pattern takes no text that its format refuses; it may refuse rare ones (quoted local parts of mail addresses, names of
several hundred letters, seconds that leap).
"""

from collections.abc import Mapping

_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DATE = f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_CLOCK = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_DAYS = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
_LABEL = "[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20}){0,2}"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"({_OCTET}\.){{3}}{_OCTET}"
_PIECE = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        f"({_PIECE}:){{7}}{_PIECE}",
        f"({_PIECE}:){{1,7}}:",
        *(f"({_PIECE}:){{1,{7 - n}}}(:{_PIECE}){{1,{n}}}" for n in range(1, 7)),
        f":(:{_PIECE}){{1,7}}",
        "::",
    ]
)
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_URI_PART = "([A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"

PATTERNS: Mapping[str, str] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P({_DAYS}({_CLOCK})?|{_CLOCK}|[0-9]+W)$",
    "email": rf"^{_ATOM}(\.{_ATOM}){{0,2}}@({_LABEL}\.){{1,3}}[A-Za-z]{{2,24}}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,3}}$",
    "ipv4": f"^{_IPV4}$",
    "ipv6": f"^({_IPV6})$",
    "uri": f"^[A-Za-z][A-Za-z0-9+.-]*:{_URI_PART}+(#{_URI_PART}*)?$",
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
