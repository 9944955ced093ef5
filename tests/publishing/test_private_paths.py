"""Paths of the maintainer's machines and storage are found, and public addresses, routes and examples are not."""

import pytest

from inhibidistilbert.publishing.private_paths import find_private_paths

PATHS = [
    "/home/someone/runs/final",
    "/root/model",
    "/Users/someone/Desktop/x",
    "/mnt/c/Users/someone",
    "/media/disk/x",
    "/tmp/run7",
    "/var/lib/x",
    "/data/texts.csv",
    "/scratch/someone",
    "/work/project/x",
    "/lustre/fs1/someone",
    "/lustre04/someone",
    "/gpfs/alpine/proj",
    "/nfs/homes/me",
    "/fsx/me/ckpt",
    "/efs/me",
    "/beegfs/me",
    "/cluster/work/me",
    "/p/scratch/proj/me",
    "/gscratch/me",
    "/ceph/me/x",
    "/dev/shm/me",
    "/usr/local/home/me/x",
    "/usr/people/me",
    "/storage1/me",
    "/nobackup/me",
    "/mystorage/me/checkpoint-500",
    "/mystorage/model",
    "/n/home01/me/x",
    "/g/data/x99/me",
    "/hb/groups/me",
    "/content/drive/MyDrive/model",
    "/content/model",
    "/kaggle/input/texts",
    "/dbfs/FileStore/x",
    "dbfs:/mnt/x",
    "/Workspace/Users/me@example.org/x",
    "/Volumes/main/default/x",
    "/home/jovyan/work",
    "/teamspace/studios/this_studio/x",
    "/opt/ml/model",
    "/private/var/folders/x",
    "/run/user/1000/x",
    "file:///home/someone/x",
    "file://server/share/x",
    "file:/home/someone/x",
    "hdfs://namenode:8020/user/me",
    "s3://bucket/key",
    "s3a://bucket/key",
    "gs://bucket/key",
    "abfss://container@account.dfs.core.windows.net/x",
    "wasbs://container@account.blob.core.windows.net/x",
    "az://container/x",
    "adl://account/x",
    "oss://bucket/x",
    "r2://bucket/x",
    "minio://bucket/x",
    "smb://server/share",
    "sftp://host/x",
    "rsync://host/module/x",
    "ssh://me@host/home/x",
    "hf://datasets/me/private",
    "hf://buckets/me/x",
    "hf://me/private/file.csv",
    "host:/home/me/x",
    r"\\server\share\x",
    r"\\wsl$\Ubuntu\home\me",
    "//server/share/x",
    r"\\?\C:\Users\x",
    r"C:\Users\x\runs",
    "C:/Users/x/runs",
    r"D:\data",
    "d:/data/x.csv",
    "/c/Users/me/x".replace("/c/", "/cygdrive/c/"),
    "~/runs/final",
    "~someone/runs",
    r"~\runs",
    "$HOME/runs",
    "${HOME}/runs",
    "$SCRATCH/x",
    "$SLURM_TMPDIR/x",
    "${PROJECT_DIR}/x",
    r"%USERPROFILE%\runs",
    r"%APPDATA%\x",
    r"$env:USERPROFILE\runs",
    "../../data/texts.csv",
    "../teacher",
    r"..\..\data",
    "runs/../../elsewhere/x",
    # escaped
    r"\/home\/someone\/x",
    "%2Fhome%2Fsomeone%2Fx",
    "&#x2F;home&#x2F;someone",
    r"C:\\Users\\x",
    "file%3A%2F%2F%2Fhome%2Fme",
]
AROUND = ["{}", "teacher={}", "--out {} --seed 0", 'path("{}")', "see `{}`.", "a: [{}, b]", "<{}>", "-I{}"]
HARMLESS = [
    "https://huggingface.co/home/someone/data",
    "http://localhost:8000/data/x",
    "git+https://github.com/someone/home/",
    "See <https://example.org/~someone/data/x>.",
    "redis://localhost:6379/0, ftp://ftp.example.org/pub/x, wss://example.org/x",
    "path/to/this/folder, /path/to/model, file:///path/to/model",
    "#!/usr/bin/env python, /bin/sh, /etc/hosts, /dev/null, /proc/cpuinfo",
    "send it to /predict/batch or /oauth/token, see /settings/downloads",
    "GET /api/models/someone/tiny, POST /v1/chat/completions",
    "runs/tiny-sentiment, .cache/data/transfer.txt, data/reviews.csv, ./model",
    "and/or, km/h, tokens/s/GPU, 24/7, 1/2, n/a, I/O, either / or, w/o",
    "γ/√d · Σ|q − k|, β/√n, H = β/n, $N/2$, a/b/c",
    "[the paper](/docs/hub/model-cards) and [this](#use)",
    "<br/><b>x</b></details> </td></tr>",
    "</s></s>, <|/user|>, [/INST]",
    "about ~5/7 of them, ~3 hours, ~~no~~/yes",
    "s/home/work, // a comment, /* another */, a // b",
    r"\alpha \\ \beta, \frac{a}{b} \\[2pt] \hline",
    "e.g.: a:b, 12:30/13:00, 3:/4, http:",
    "Ratio: 1.5e-3/2, 90%/10%, %d/%s, {a}/{b}",
    "costs $5/month, US$HOME, 100 %HOME",
    "... /..., 1../2, a..b/c, wait.../then",
    "arXiv:2310.02041, doi:10.18653/v1/2020.x, hf.co/datasets/imdb",
    "##/ ##../ ~ / // ../ ./ C: \\ [unused0]",
    "distilbert/embeddings/LayerNorm/weight, layer.0/attention",
    "~/.cache/huggingface/hub",
    "U:S:/x, 10/20/30, +/-0.5/0.3",
]


@pytest.mark.parametrize("path", PATHS)
def test_found(path):
    missed = [around for around in AROUND if not list(find_private_paths(around.format(path)))]
    # An option of one letter is part of a word before anything but a root; within a text UNC in slashes is a comment, and
    # two parts are a route.
    assert set(missed) <= ({*AROUND[1:]} if path in ("//server/share/x", "/mystorage/model") else {"-I{}"})


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text):
    assert list(find_private_paths(text)) == []


def test_option_of_one_letter():
    assert list(find_private_paths("cc -I/home/someone/include -L/usr/lib x.c")) == ["/home/someone/include"]


def test_what_the_card_names_on_the_hub():
    named = {"stanfordnlp/imdb"}
    assert not list(find_private_paths("hf://datasets/stanfordnlp/imdb/plain_text/train.parquet", named))
    assert not list(find_private_paths("hf://datasets/stanfordnlp/imdb@main/x", named))
    assert list(find_private_paths("hf://datasets/stanfordnlp/imdb2/x", named))
    assert list(find_private_paths("hf://buckets/stanfordnlp/imdb/x", named))
