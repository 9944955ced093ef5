"""Secrets are found in the forms they have, wherever they are sent, and not where there are none.

All are made up, and put together here from parts: this file holds nothing that looks like one.
"""

import base64
import json
import time

import pytest

from inhibidistilbert.publishing.checks import FILE_CHECKS, run_checks
from inhibidistilbert.publishing.contents import pieces
from inhibidistilbert.publishing.private_paths import find_private_paths
from inhibidistilbert.publishing.secrets import find_secrets, redact, secrets_in
from tests.helpers.publishable import TOKEN, assembled, edit_json, edit_weights, replace_in
from tests.helpers.slow import slow_but_first

HEX = "3f9a0c7b" * 8
MIXED = "aB3dE5fG7h" * 10
DIGITS = "4815162342" * 2
AWS = "wJa1rX/tnFEM" + "I7K7MDENGbPx+RfiCYz9k" + "Qe4Lm2s"
CLAIMS = base64.b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode().rstrip("=")

SECRETS = {
    "a Hugging Face token": f"login(token={TOKEN})",
    "a GitHub token": "ghp" + "_a1B2" * 1 + "a1B2" * 9,
    "an API key": "key: sk" + "-" + "a1B2" * 10,
    "an AWS access key": "AK" + "IA" + "ABCD2345" * 2,
    "a Google API key": "AI" + "za" + "aB3-_" * 7,
    "a Slack token": "xo" + "xb-1234567890-abcdef",
    "a JSON web token": f"{CLAIMS}.{CLAIMS}.c2lnbmF0dXJlMTIz",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a password in an address": "https://someone:" + "sesame@example.org/data",
    "a value that is called a secret": "wandb_api_key = " + '"0123456789abcdef"',
    "an experiment tracker's key": "wandb login " + HEX[:40],
    "a package registry's token": "npm" + "_" + MIXED[:36],
    "a payment service's key": "sk" + "_live_" + MIXED[:24],
    "a chat's webhook": "https://hooks.slack.com/" + f"services/T{MIXED[:8]}/B{MIXED[:8]}/{MIXED[:24]}",
    "a chat bot's token": DIGITS[:10] + ":" + MIXED[:35],
    "a header that logs in": "Authorization: Bearer " + MIXED[:40],
    "a hashed password": "$2b$12$" + MIXED[:53],
    "a signed address": "https://bucket.example.org/x?X-Amz-" + f"Signature={HEX}",
    "a cloud's key": "ya29" + "." + MIXED[:40],
    "a password in a command": "machine example.org login me " + "password sesame1234",
    "a random text, as keys are": AWS,
}
# The names of these kinds do not matter.
FORMS = {
    "a fine-grained GitHub token": "github" + "_pat_" + MIXED[:60],
    "GitLab": "gl" + "pat-" + MIXED[:20],
    "OpenAI's projects": "sk" + "-proj-" + MIXED[:48],
    "Anthropic": "sk" + "-ant-api03-" + MIXED[:60],
    "Groq": "gs" + "k_" + MIXED[:52],
    "Replicate": "r8" + "_" + MIXED[:37],
    "AWS, a configuration": "aws_secret_access_key = " + AWS,
    "AWS, the environment": "export AWS_SECRET_ACCESS_KEY=" + AWS,
    "AWS, for a session": "ASI" + "A" + "ABCD2345" * 2,
    "Azure storage": "DefaultEndpointsProtocol=https;AccountName=x;Account" + "Key=" + MIXED[:86] + "==",
    "Azure, a signature": "https://x.blob.core.windows.net/y?sv=2022&" + "sig=" + MIXED[:43] + "%3D",
    "Azure, an application": "abc" + "8Q~" + MIXED[:34],
    "Google, an application": "GOC" + "SPX-" + MIXED[:28],
    "Databricks": "da" + "pi" + HEX[:32],
    "DigitalOcean": "do" + "p_v1_" + HEX,
    "W&B, the environment": "WANDB_API_KEY=" + HEX[:40],
    "W&B, a call": f'wandb.login(key="{HEX[:40]}")',
    "Neptune": "api_token: eyJ" + base64.b64encode(b'pi_address":"https://app.neptune.ai","x":1').decode(),
    "Comet": 'COMET_API_KEY="' + MIXED[:25] + '"',
    "Kaggle": '{"username": "someone", "key": "' + HEX[:32] + '"}',
    "Kaggle in text": "my kaggle key " + HEX[:32],
    "Notion": "secret" + "_" + MIXED[:43],
    "PyPI": "py" + "pi-AgEIcHlwaS5vcmc" + MIXED[:80],
    "npm, a configuration": "//registry.npmjs.org/:_auth" + "Token=" + "12345678-1234-1234-1234-123456789abc",
    "Docker": "dckr" + "_pat_" + MIXED[:27],
    "crates.io": "ci" + "o" + MIXED[:32],
    "Stripe, restricted": "rk" + "_live_" + MIXED[:24],
    "Stripe, a webhook": "wh" + "sec_" + MIXED[:32],
    "Square": "sq0" + "csp-" + MIXED[:43],
    "Telegram in an address": "https://api.telegram.org/bot" + DIGITS[:10] + ":" + MIXED[:35] + "/getMe",
    "Discord, a bot": "M" + MIXED[:23] + "." + MIXED[:6] + "." + MIXED[:27],
    "Discord, a webhook": "https://discord.com/api/web" + "hooks/123456789012345678/" + MIXED[:60],
    "Slack, an application": "xa" + "pp-1-A0123456789-" + DIGITS[:12] + "-" + HEX[:30],
    "SendGrid": "S" + "G." + MIXED[:22] + "." + MIXED[:43],
    "Mailchimp": HEX[:32] + "-us" + "12",
    "Twilio": "S" + "K" + HEX[:32],
    "Basic": "Authorization: Basic " + base64.b64encode(b"someone:sesame").decode(),
    "Bearer in a command": 'curl -H "Authorization: Bearer ' + HEX[:32] + '" https://example.org',
    "Bearer, of letters": "Authorization: Bearer " + "aBcDeFgHiJkLmNoPqRsT",
    "netrc": "  password hunt" + "er2x",
    "prose": "The password is hunt" + "er2x.",
    "sshpass": "sshpass -p hunt" + "er2x ssh me@example.org",
    "curl": "curl -u someone:" + "sesame12 https://example.org",
    "password, unquoted": "password: hunt" + "er2x",
    "password, of letters": "password: openses" + "ame",
    "password, of digits": "PASSWORD=8675" + "3091",
    "password, annotated": "db_password: str = " + '"hunt' + 'er2x"',
    "password, in a table": "| password | hunt" + "er2x |",
    "password, as an option": "train.py --password hunt" + "er2x --epochs 3",
    "password, in a call": "connect(user='me', password='hunt" + "er2x', port=1)",
    "password, the second on its line": "user: me, password: hunt" + "er2x, port: 1",
    "password, within a value": "env:PASSWORD=hunt" + "er2x",
    "password, in camel case": 'dbPassword: "hunt' + 'er2x"',
    "a passphrase": 'passphrase = "correct horse ' + 'battery staple"',
    "a client's secret": "client_secret=" + HEX[:24],
    "a database": "postgresql://me:hunt" + "er2x@db.example.org/x",
    "redis": "redis://:hunt" + "er2x@cache.example.org",
    "a token in an address": "https://" + MIXED[:40] + "@example.org/x.git",
    "PuTTY": "PuTTY-User-Key" + "-File-2: ssh-rsa",
    "OpenSSH": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "PGP": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "Vault": "hv" + "s." + MIXED[:24],
    "Terraform": MIXED[:14] + ".atlasv1" + "." + MIXED[:60],
    # escaped
    "JSON in text": '{"x": "' + TOKEN.replace("_", "\\u005f") + '"}',
    "JSON in JSON in text": json.dumps(json.dumps({"password": "hunt" + "er2x"})),
    "Markdown": TOKEN.replace("_", "\\_"),
    "HTML": TOKEN.replace("_", "&#95;"),
    "an address": TOKEN.replace("_", "%5F"),
    "base64": base64.b64encode(TOKEN.encode()).decode(),
    "an invisible character": TOKEN[:2] + "\u200b" + TOKEN[2:],
    "in a word": f"model_{TOKEN}.weight",
}
HARMLESS = [
    "https://huggingface.co/datasets/stanfordnlp/imdb",
    '"pad_token": "[PAD]", "sep_token": "[SEP]"',
    "the secret: a quiet film",
    "commit e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    "password: str",
    "The password is sha256-hashed, the password is required.",
    "disk-" + "a" * 30,
    "Use the password reset link; the token is sent by mail.",
    "Password: reset it in the settings",
    "Labels: password_reset, lost_token, secret_santa, api_key_rotation",
    "| secret | 0.951 | 1,234 |",
    "- password reset: 81.2",
    'login(token="hf_...")',
    "HF_TOKEN=hf_" + "x" * 34,
    "export HF_TOKEN=<your token>",
    'api_key = os.environ["OPENAI_API_KEY"]',
    "api_key=YOUR_API_KEY",
    "password = getpass.getpass()",
    "--secret-input-mode plaintext",
    "--secrets HF_TOKEN",
    'api_key="HF_TOKEN"',
    'api_key: "no-key-required"',
    'HF_TOKEN="hf_your_token_here"',
    'headers = {"Authorization": "Bearer " + token}',
    "TheBloke/OpenOrcaxOpenChat-Preview2-13B-GGML",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA" + "INJjhgtT9FOQrsVSarIoPVI1jFMh3VSHdKfdqp/O776s",
    "def connect(user: str, password: str | None = None) -> None:",
    "connect(user=user, password=password, token=token)",
    "tokenizer.mask_token = '[MASK]'",
    'mask_token: "<|endoftext|>"',
    "max_token: 512, token_type_ids, sep_token_id: 102",
    "key: value, keys: queries",
    'sha256 "356cfa39081b7687b26ee369e96bb498681dba4e03668427a798be15da43702a"',
    "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "md5 d41d8cd98f00b204e9800998ecf8427e, id 123e4567-e89b-12d3-a456-426614174000",
    "arXiv 2310.02041, doi 10.18653/v1/2020.emnlp-demos.6, ISBN 978-3-16-148410-0",
    "![logo](data:image/png;base64," + base64.b64encode(bytes(range(200))).decode() + ")",
    "https://colab.research.google.com/drive/1aB3dE5fG7haB3dE5fG7haB3dE5fG7haB",
    "https://example.org/search?key=value&token=abc&page=2",
    "from transformers import InhibiDistilBertV2ForSequenceClassificationWithInt8",
    "distilbert.transformer.layer.0.attention.q_lin.weight_int8_scale_fp32",
    "tests B2-N63-H12-D64-bf16-L128-x86-64-v3 and sst2-mrpc-qqp-mnli-qnli-rte-wnli-cola-stsb",
    "bearer authentication, basic classification, Basic English",
    "http://localhost:8000/v1, redis://localhost:6379/0, git@github.com:someone/name.git, me@example.org",
    "https://user:${PASSWORD}@example.org",
    "input_ids: [101, 7592, 1010, 2088, 999, 102]",
    "Seed 20240131123456789, 1234567890 tokens",
    "| `token` | str | the token of the Hub |",
    "Cookie: yes. Signature: none. Key: Manhattan distance",
]


@pytest.mark.parametrize("kind", SECRETS)
def test_found_with_its_line(kind):
    found = list(find_secrets(f"first line\n{SECRETS[kind]}\n"))
    assert [(secret.kind, secret.line) for secret in found] == [(kind, 2)]
    assert SECRETS[kind] not in repr(found)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found(form):
    assert [secret.line for secret in find_secrets(f"first line\n{FORMS[form]}\nlast line")] == [2]


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text):
    assert not list(find_secrets(text))


@pytest.mark.parametrize("text", ["a-" * 30_000, "http://" * 8_000, "password=reset" + "-a" * 30_000 + "1", "../a" * 15_000])
def test_long_lines_take_no_time(text):
    """A stranger may write such a card: no pattern runs from every place to the end."""
    began = time.process_time()
    list(find_secrets(text))
    list(find_private_paths(text))
    assert time.process_time() - began < 10


def test_own_token_of_any_form():
    assert [secret.kind for secret in find_secrets("x = open-sesame", own_token="open-sesame")] == ["the token in use"]


def test_redacted_by_the_line():
    assert redact(f"one\ntwo {TOKEN}\nthree") == "one\n[not shown: a Hugging Face token]\nthree"
    assert redact("nothing\nto hide\n") == "nothing\nto hide\n"


NAMED = {
    "password": "opensesame",
    "DB_PASSWD": "p!xx",
    "clientSecret": "sesame",
    "api-key": "sesame",
    "hf_token": "sesame",
    "aws.secret_access_key": "sesame",
    "token": HEX[:32],
    "key": MIXED[:24],
    "pwd": 86753091,
}
NAMED_HARMLESS = {
    "pad_token": "[PAD]",
    "token": "[MASK]",
    "key": "distilbert-base-uncased-v2",
    "tokenizer_class": "BertTokenizer",
    "hub_token": None,
    "use_auth_token": True,
    "api_key": "",
    "password": "<your password>",
    "password_reset": "a class",
    "secret": 7,
    "revision": "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
}


@pytest.mark.parametrize("inside", [lambda c: c, lambda c: {"x": [c]}, lambda c: {"x": json.dumps(c)}])
@pytest.mark.parametrize("name", NAMED)
def test_by_the_name_of_a_value(name, inside, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(inside({name: NAMED[name]})))
    assert list(secrets_in(pieces("x.json", tmp_path / "x.json")))


@pytest.mark.parametrize("name", NAMED_HARMLESS)
def test_harmless_by_the_name_of_a_value(name, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({name: NAMED_HARMLESS[name]}))
    assert not list(secrets_in(pieces("x.json", tmp_path / "x.json")))


def test_names_that_stand_twice(tmp_path):
    (tmp_path / "x.json").write_text('{"note": "%s", "note": "nothing"}' % TOKEN)  # noqa: UP031 - braces
    assert list(secrets_in(pieces("x.json", tmp_path / "x.json"))) == [("note", "a Hugging Face token")]


def test_json_in_several_strings(tmp_path):
    """Each is an object of its own, also where they take the same place in memory one after another."""
    content = {str(i): json.dumps({"note": "nothing"}) for i in range(20)} | {"last": json.dumps({"password": "opensesame"})}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert ("last.password", "a value that is called a secret") in set(secrets_in(pieces("x.json", tmp_path / "x.json")))


def write(name, text):
    return lambda folder, secret: (folder / name).write_text(text.replace("{}", secret))


def edit(name, change):
    return lambda folder, secret: edit_json(folder / name, lambda content: change(content, secret))


def rename_tensor(folder, secret):
    edit_weights(folder, lambda weights: weights.update({secret: weights.pop("classifier.bias")}))


def add_field(folder, secret):
    """To what the header says of a tensor: nobody who loads the weights sees it."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["classifier.bias"]["note"] = secret
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


# Every file that goes out: how a text gets into it, and what the file is called there.
PLACES = {
    "config.json": edit("config.json", lambda c, s: c.update(note=s)),
    "config.json, a name": edit("config.json", lambda c, s: c.update({s: 1})),
    "config.json, a label": edit("config.json", lambda c, s: c.update(id2label={"0": s, "1": "x"})),
    "generation_config.json": write("generation_config.json", '{"deep": [{"er": "{}"}]}'),
    "tokenizer_config.json": edit("tokenizer_config.json", lambda c, s: c.update(name_or_path=s)),
    "tokenizer.json, its vocabulary": edit("tokenizer.json", lambda c, s: c["model"]["vocab"].update({s: 20})),
    "tokenizer.json, an added token": edit("tokenizer.json", lambda c, s: c["added_tokens"][0].update(content=s)),
    "vocab.txt": write("vocab.txt", "[PAD]\n{}\n"),
    "added_tokens.json": write("added_tokens.json", '{"{}": 3}'),
    "special_tokens_map.json": write("special_tokens_map.json", '{"mask_token": "{}"}'),
    "distillation.json": edit("distillation.json", lambda c, s: c.update(note=s)),
    "eval_results.json": edit("eval_results.json", lambda c, s: c.update(machine=s)),
    "cpu.json": write("cpu.json", '{"machine": {"cpu": "{}", "date": "2026-01-31"}, "results": []}'),
    "LICENSE": write("LICENSE", "Free\n{}\n"),
    "README.md, a section": lambda folder, s: replace_in(folder / "README.md", "Irony is misread.", f"Irony {s} too."),
    "README.md, metadata": lambda folder, s: replace_in(folder / "README.md", "A quiet film.", json.dumps(s)),
    "model.safetensors, a tensor's name": rename_tensor,
    "model.safetensors, an unknown field": add_field,
    "model.safetensors, metadata": lambda folder, s: edit_weights(folder, lambda weights: None, note=s),
    "model.safetensors.index.json": write("model.safetensors.index.json", '{"weight_map": {}, "metadata": {"x": "{}"}}'),
    ".eval_results/stanfordnlp--imdb.yaml": edit("eval_results.json", lambda c, s: c["results"][0].update(task_id=s)),
}


def kind_of_place(place: str) -> list[tuple[str, str]]:
    """Of a place in a file: that file's ending, and the place."""
    file, _, within = place.partition(",")
    return [(file.rpartition(".")[2], within)]


@pytest.mark.parametrize("place", slow_but_first(PLACES, kind_of_place))
def test_every_place_is_searched(place, checkpoint, tmp_path):
    PLACES[place](checkpoint, f"/scratch/someone/x-{TOKEN}")
    checks = {name: FILE_CHECKS[name] for name in ("secrets", "private paths")}
    results = run_checks(assembled(checkpoint, tmp_path / "assembled"), checks)
    for result in results:
        assert place.partition(",")[0] in {problem.file for problem in result.problems}
    assert TOKEN not in repr(results)


def test_the_name_of_a_file_is_searched(candidate):
    (candidate.folder / f"model-{TOKEN}-of-2.safetensors").write_bytes(b"")
    (result,) = run_checks(candidate, {"secrets": FILE_CHECKS["secrets"]})
    assert len(result.problems) == 1
    assert TOKEN not in repr(result)


@pytest.mark.parametrize("content", [TOKEN.encode("utf-16"), TOKEN.encode("utf-16-le"), b"\xff"])
def test_what_cannot_be_read_is_refused(content, checkpoint, tmp_path):
    (checkpoint / "LICENSE").write_bytes(content)
    (result,) = run_checks(assembled(checkpoint, tmp_path / "assembled"), {"secrets": FILE_CHECKS["secrets"]})
    assert [(problem.file, problem.remedy) for problem in result.problems] == [("LICENSE", "save it as text in UTF-8")]


def test_metadata_that_refers_to_itself(tmp_path):
    """YAML may say much with little: each thing is looked at once."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    (tmp_path / "x.yaml").write_text("\n".join([*lines, f"b: {TOKEN}"]))
    assert ("b", "a Hugging Face token") in set(secrets_in(pieces("x.yaml", tmp_path / "x.yaml")))
