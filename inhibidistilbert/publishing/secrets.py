"""Looks for tokens, keys and passwords in text: with the patterns of detect-secrets, and with those that it lacks."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from itertools import pairwise

from .contents import Piece, decoded, readings

# Those of detect-secrets that go by the form of a token. They only match: none asks a service whether the token is valid.
_DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "cloudant": "CloudantDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "ibm_cloud_iam": "IbmCloudIamDetector",
    "ibm_cos_hmac": "IbmCosHmacDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector",
    "openai": "OpenAIDetector",
    "private_key": "PrivateKeyDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "softlayer": "SoftlayerDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
_PATTERNS = {
    "a Hugging Face token": r"(?:hf|api_org)_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[\w.-]{20,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}",
    "an API key": (
        r"(?:sk|pk|rk)-[A-Za-z0-9_-]{20,}|(?:gsk|xai|pplx|nvapi|pcsk|r8|rpa|sbp|figd|glsa|glc|ntn|KGAT)[_-][A-Za-z0-9_-]{30,}|secret_[A-Za-z0-9]{40,}"
        r"|lsv2_(?:pt|sk)_\w{30,}|lin_api_\w{30,}|PMAK-[0-9a-f-]{40,}|NRAK-[A-Z0-9]{20,}|key-[0-9a-f]{32}|AKCp\w{10,}"
        r"|sntry[su]_[\w+/=-]{20,}|dp\.(?:pt|st|ct)\.\w{20,}|hv[sb]\.[\w-]{20,}|\w{14}\.atlasv1\.[\w-]{40,}|pat\w{14}\.\w{40,}"
        r"|AGE-SECRET-KEY-1[A-Z0-9]{20,}|HRKU-[\w-]{30,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    ),
    "an AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "a cloud's key": (
        r"ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|\w{3}8Q~[\w.~-]{30,}|dapi[0-9a-f]{32}|do[opr]_v1_[0-9a-f]{60,}"
        r"|(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/=]{20,}|LTAI[A-Za-z0-9]{16,}"
    ),
    "a Google API key": r"AIza[A-Za-z0-9_-]{35}",
    "an experiment tracker's key": r"wandb_v\d_\w{20,}|(?:wandb|kaggle)\b[^\n]{0,60}?\b[0-9a-f]{32,40}\b",
    "a package registry's token": (
        r"npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{50,}|rubygems_[0-9a-f]{48}|dckr_[a-z]+_[\w-]{20,}|oy2[a-z0-9]{43}"
        r"|cio[A-Za-z0-9]{32}\b"
    ),
    "a payment service's key": (
        r"[srp]k_(?:live|test|prod)_[0-9A-Za-z]{10,}|whsec_[A-Za-z0-9+/]{20,}|sq0(?:atp|csp|idp)-[\w-]{20,}"
        r"|access_token\$(?:production|sandbox)\$\w+\$[0-9a-f]{20,}"
    ),
    "a Slack token": r"(?:xox[a-z]|xapp)[-.][A-Za-z0-9-]{10,}",
    "a chat's webhook": (
        r"(?i:hooks\.slack\.com/(?:services|workflows|triggers)/\w+/\w+/\w+|discord(?:app)?\.com/api/webhooks/\d+/[\w-]+"
        r"|webhook\.office\.com/\S{20,}|chat\.googleapis\.com/v1/spaces/\S+[?&]key=\S+)"
    ),
    "a chat bot's token": r"(?:bot)?\d{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
    "a JSON web token": r"eyJ[\w-]{10,}\.[\w-]{10,}|eyJ[A-Za-z0-9+/_-]{40,}",
    "a private key": r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|Static key)|PuTTY-User-Key-File-\d",
    "a hashed password": r"\$(?:apr1|2[abxy]|[156y]|argon2(?:id|i|d))\$[\w./$=,+-]{20,}",
    "a password in an address": (
        r"[A-Za-z][A-Za-z0-9+.-]{0,20}://(?:[^\s/:@\"'<>]{0,99}:[^\s/:@\"'<>${]{1,199}|(?=[^@\s]{0,199}\d)[\w.%~-]{16,199})@(?=[\w\[])"
    ),
    "a signed address": r"(?i:(?<=[?&])(?:sig|signature|x-(?:amz|goog)-(?:signature|credential))=[\w%+/=.~-]{20,})",
    "a password in a command": (
        r"(?i:login\s+\S+\s+password\s+\S{4,}|sshpass\s+-p\s*[^\s$<]{4,}"
        r"|password\s+is\s+[\"'`]?(?!sha|md5|base|utf|[ab]\w*crypt)(?=\S*\d)\S{6,}"
        r"|(?m:^[ \t]*password[ \t]+(?=\S*\d)\S{6,}[ \t]*$)"
        r"|curl\b[^\n]{0,300}\s(?:-u|--user)[\s=]*[\"']?[\w.@-]+:[^\s$<{\"']{4,})"
    ),
    "a header that logs in": r"(?i:bearer|authorization:\s*\w+)[ \t]+(?=[\w.~+/=-]*(?:\d|[a-z][A-Z]))[\w.~+/-]{12,}=*",
}
# Not in the middle of a longer word or number.
_SECRETS = {kind: re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})") for kind, pattern in _PATTERNS.items()}
_BASIC = re.compile(r"\bbasic[ \t]+([A-Za-z0-9+/]{8,}={0,2})", flags=re.IGNORECASE)

# By their names: whatever they hold, and only what looks random, as the token may be a tokenizer's.
_STRONG_NAME = re.compile(
    r"passw(?:or)?d|passphrase|passcode|secret|credential|(?:^|_)(?:pwd|pw|authorization)(?:_|$)|connection_?string|webhook"
    r"|(?:api|auth|access|account|private|service|client|master|encryption|signing|shared|deploy|subscription|storage|db|database"
    r"|wandb|comet|neptune|clearml|mlflow|openai)_?(?:key|pass)(?:_|$)"
    r"|(?:api|auth|access|bot|hf|hub|face|refresh|bearer|session|personal|deploy|oauth|wandb|github|gitlab|slack|npm|pypi"
    r"|kaggle|telegram|discord|neptune|comet|mlflow)_?token(?:_|$)"
)
_WEAK_NAME = re.compile(r"(?:^|_)(?:token|key|pass|auth|sas|dsn|signature|cookie|session_?id|bearer|login|id_token)$")
_OTHER_THING = re.compile(
    r"_(?:len|length|size|count|type|reset|required|policy|hint|field|column|label|name|env|var|min|max)$"
)
_ASSIGNED = re.compile(
    # A name and closing marks; what follows, a type and the value, is looked at only, as it may hold names of its own.
    r"(?<![\w.])(?P<name>[A-Za-z_][\w.-]{0,80})[\"'`\]\\*]*[ \t]*(?:[:=|]|:=|=>|={2,3})[ \t]*"
    r"(?=(?:(?:Optional\[)?(?:str|bytes|int|Any|SecretStr)\b[\w\[\]|., ]{0,30}?=(?!=)[ \t]*)?"
    r"(?:\\?(?P<quote>[\"'`])(?P<quoted>[^\"'`\n]{1,300})|(?P<bare>[^\s\"'`]{1,300})(?P<rest>[^\n]{0,80})))"
)
_FLAG = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w-]{0,60})[ \t]+[\"']?(?P<bare>[^\s\"'-][^\s\"']*)")
_NO_SECRET = re.compile(
    # what is to be filled in, and the names of variables
    r"[<{(\[%$].*|.*[>}]|\W+|.*(?:\.\.\.|…).*|[\w-]*[xX]{3,}\w*|(?:\w*[-_])?your[\w -]*"
    r"|(?:insert|replace|enter|paste)[-_ ]\w.*|(?:my|some|the|an?|no)[-_][a-z_-]*|placeholder|change_?me"
    r"|redacted|removed|hidden|unset|(?-i:[A-Z]+_[A-Z_]+)"
    # types, words of prose, other names
    r"|str(?:ing)?|int|bytes|bool|any|none|null|nil|true|false|yes|no|optional|required|empty|unknown|default|prompt|input"
    r"|environment|secretstr|text|type|unchanged|needed|stdin|vault|keyring|getpass|bearer|basic"
    r"|(?:reset|forgot|change|password|passwd|secret|token|key|api[-_]?key)[a-z_-]*",
    flags=re.IGNORECASE,
)
_CODE = re.compile(r"[A-Za-z_][\w.]*[(\[].*|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_BARE = re.compile(r"(?<![\w+/=.~@:-])[A-Za-z0-9+/_-]{32,}={0,2}(?![\w+/=.~-])")
# Pictures, addresses, checksums and public keys are as random.
_NOT_BARE = re.compile(
    r"data:[\w/+.-]*;base64,\S+|https?://[^\s?]+|\bsha\d+-[A-Za-z0-9+/=]+|\b(?:ssh|ecdsa)-[\w-]+ [A-Za-z0-9+/=]+"
)


@dataclass(frozen=True)
class Secret:
    """What kind of secret stands on which line, from 1. The secret itself is kept nowhere."""

    kind: str
    line: int


def find_secrets(text: str, own_token: str | None = None) -> Iterator[Secret]:
    """Every line that holds a secret, in whatever way it is escaped; `own_token` is found whatever its form."""
    if not _holds_secret(text, own_token):
        return
    for number, line in enumerate(text.splitlines(), 1):
        if kind := next(filter(None, (_kind(reading, own_token) for reading in readings(line))), None):
            yield Secret(kind, number)


def secrets_in(content: Iterable[Piece], own_token: str | None = None) -> Iterator[tuple[str, str]]:
    """Where in a file, and of which kind: by the form of a value, or by what it is called there."""
    content = list(content)
    text = "\n".join(piece.text for piece in content if not piece.text.isdecimal())
    suspicious = any(True for _ in find_secrets(text, own_token))
    for piece in content:
        found = next(find_secrets(piece.text, own_token), None) if suspicious else None
        if found or (piece.name and _is_called_secret(piece.name, piece.text)):
            # The place may be called by the secret itself.
            where = "a name" if any(True for _ in find_secrets(piece.where, own_token)) else piece.where
            yield where, found.kind if found else "a value that is called a secret"


def redact(text: str, own_token: str | None = None) -> str:
    """`text` without the lines that hold a secret."""
    kinds = {secret.line: secret.kind for secret in find_secrets(text, own_token)}
    if not kinds:
        return text
    lines = (
        f"[not shown: {kinds[number]}]" if number in kinds else line for number, line in enumerate(text.splitlines(), 1)
    )
    return "\n".join(lines)


@lru_cache(maxsize=1024)  # one file has hundreds of names and values, each looked at where it holds a secret
def _holds_secret(text: str, own_token: str | None) -> bool:
    """Most texts do not: a look at the whole is much faster than one at each line, and source files are always the same."""
    return any(_kind(reading, own_token) for reading in readings(text))


def _kind(text: str, own_token: str | None) -> str | None:
    """The kind of a secret in a text of one or more lines."""
    if own_token and own_token in text:
        return "the token in use"
    for kind, pattern in _SECRETS.items():
        if any(not _is_filler(match[0]) for match in pattern.finditer(text)):
            return kind
    for kind, detect in _detectors():
        if any(not _is_filler(found) for found in detect(text)):
            return kind
    if any(":" in decoded(match[1]) for match in _BASIC.finditer(text)):
        return "a header that logs in"
    if any(map(_is_assigned_secret, (*_ASSIGNED.finditer(text), *_FLAG.finditer(text)))):
        return "a value that is called a secret"
    if any(_is_mixed(match[0]) for match in _BARE.finditer(_NOT_BARE.sub(" ", text))):
        return "a random text, as keys are"
    return None


@cache
def _detectors() -> list[tuple[str, Callable[[str], Iterator[str]]]]:
    """What to call a find of each detector, and the detector; imported when they are needed, as the library is large."""
    found = []
    for module, name in _DETECTORS.items():
        detector = getattr(import_module(f"detect_secrets.plugins.{module}"), name)()
        found.append((f"what detect-secrets calls {detector.secret_type}", detector.analyze_string))
    return found


def _is_filler(found: str) -> bool:
    """`hf_xxxxxxxx`, or a word without a digit."""
    return len(found) > 12 and (len({*found[-12:]}) <= 2 or not re.search(r"[\d\s@/-]", found))


def _is_assigned_secret(match: re.Match[str]) -> bool:
    """Of `name = value` and the like in running text, which may be code, a table or prose."""
    groups = match.groupdict()
    if groups.get("quoted"):
        return _is_called_secret(match["name"], match["quoted"])
    value, rest = match["bare"].rstrip(",;.)]}|*"), groups.get("rest") or ""
    if not _is_called_secret(match["name"], value) or _CODE.fullmatch(match["bare"].rstrip(",;")):
        return False
    if re.search(r"\d", value) and re.search(r"[^\W\d]", value):
        # In prose: "Password: sha256 is computed".
        return len(value) >= 6 and (match["bare"][-1] in ",;" or not re.match(r"[ \t]+[a-z]", rest))
    before = match.string[match.string.rfind("\n", 0, match.start()) + 1 : match.start()]
    if "rest" not in groups and "passw" not in match["name"].lower():
        return False  # options take all kinds of words
    alone = re.fullmatch(r"\W*(?:(?:export|set|env)\s+)?", before, flags=re.IGNORECASE) and not re.search(r"\w", rest)
    return bool(alone) and len(value) >= 6


def _is_called_secret(name: str, value: str) -> bool:
    """Whether a value of this name is a secret."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_")
    value = value.strip()
    if len(value) < 4 or _NO_SECRET.fullmatch(value) or _OTHER_THING.search(name) or value.lower() == name:
        return False
    if not _STRONG_NAME.search(name):
        return bool(_WEAK_NAME.search(name)) and _is_random(value)
    if " " in value:
        return "pass" in name and "pass" not in value.lower()
    # Not an index, a count or a size, which a vocabulary or a label map may call so.
    return not re.fullmatch(r"-?\d{1,5}(?:\.\d*)?", value)


def _is_random(value: str) -> bool:
    """Letters and digits without a rule, as in `3f9a0c…`: not `distilbert-base-uncased-v2`."""
    return bool(re.fullmatch(r"[\w+/=.~-]{16,}", value)) and len(re.findall(r"[A-Za-z](?=\d)|\d(?=[A-Za-z])", value)) >= 3


def _is_mixed(word: str) -> bool:
    """Capitals, small letters and digits in such a turmoil that it is no name: they change at every second character."""
    kinds = "".join("A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else "-" for c in word.rstrip("="))
    changes = sum(a != b for a, b in pairwise(kinds) if "-" not in (a, b))
    unbroken = max(map(len, kinds.split("-")))
    return {*"Aa0"} <= {*kinds} and unbroken >= 16 and changes > 0.45 * len(kinds)
