"""Folders and zips as others leave them: nothing waits, or is read without end, or listed twice."""

import os
import re
import resource
import shutil
import socket
import struct
import sys
import zipfile
import zlib

import pytest

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.data.sources.access import Access
from dml.data.sources.detect import open_source
from dml.data.sources.files import read_local
from dml.data.sources.sample import Refused
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from tests.data.pictures import class_folders, picture, write
from tests.data.test_ingest import config as strict
from tests.data.test_ingest import quarantine


def config(source, **others) -> IngestConfig:
    """However many rows are refused: here they are the subject."""
    return strict(source, max_quarantined=1, **others)


needs_special_files = pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="Linux only")


def labels(listing) -> dict[str, str]:
    return {sample.id: sample.label for sample in listing.samples}


def problems(listing) -> dict[str, str]:
    return {problem.locator: problem.reason for problem in listing.problems}


@needs_special_files
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/zero", "not a regular file"),
        ("/proc/self/environ", "empty file"),
        ("/proc", "not a regular file"),
        ("/proc/self/environ/x", "missing file"),
        ("/nothing/at/all", "missing file"),
        ("/" + "long" * 500, "unreadable file"),
        ("/with\0zero", "unreadable file"),
    ],
)
def test_only_regular_files_are_read(path, reason):
    with pytest.raises(Refused) as refusal:
        read_local(path, max_bytes=1000)
    assert refusal.value.reason == reason


def test_a_named_pipe_and_a_socket_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s.png"))
    for name in ("pipe.png", "s.png"):
        with pytest.raises(Refused, match="not a regular file"):
            read_local(str(tmp_path / name), max_bytes=1000)
    listening.close()


def test_a_file_that_is_too_large_is_refused_by_its_size(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(Refused, match=f"{1 << 40} bytes; at most 1000"):
        read_local(str(path), max_bytes=1000)


def test_special_files_in_class_folders_are_reported_and_the_rest_is_ingested(tmp_path):
    source = class_folders(tmp_path / "source", classes=2)
    os.mkfifo(source / "class0" / "pipe.png")
    ref = ingest(config(source), str(tmp_path / "store"))
    assert ref.rows == 10
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [
        ("class0/pipe.png", "not a regular file")
    ]


def test_links_are_followed_once_and_broken_ones_are_reported(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=1)
    (source / "class0" / "up").symlink_to("..")
    (source / "class0" / "loop").symlink_to("loop")
    (source / "class0" / "gone.png").symlink_to("nothing.png")
    (source / "class0" / "same.png").symlink_to("0.png")
    (source / "alias").symlink_to("class1")
    listing = open_source(str(source)).list()
    assert set(labels(listing)) == {"class0/0.png", "class0/same.png", "class1/0.png"}
    assert problems(listing) == {
        "class0/up": "repeated folder",
        "class0/loop": "broken link",
        "class0/gone.png": "broken link",
        "alias": "repeated folder",
    }


def test_links_out_of_the_source_need_an_allowed_prefix(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", {"cat/1.png": picture(1), "2.png": picture(2)})
    source = class_folders(tmp_path / "source", classes=2, per_class=1)
    (source / "cat").symlink_to(elsewhere / "cat")
    (source / "class0" / "2.png").symlink_to(elsewhere / "2.png")
    confined = open_source(str(source)).list()
    assert set(labels(confined)) == {"class0/0.png", "class1/0.png"}
    assert problems(confined) == dict.fromkeys(("cat", "class0/2.png"), "outside allowed prefixes")
    assert all("allowed_prefixes" in problem.detail for problem in confined.problems)
    allowing = open_source(str(source), access=Access((str(elsewhere),)))
    assert {id_: label for id_, label in labels(allowing.list()).items() if "class1" not in id_} == {
        "class0/0.png": "class0",
        "class0/2.png": "class0",
        "cat/1.png": "cat",
    }
    assert allowing.read("cat/1.png") == picture(1)
    only_links = tmp_path / "links"
    only_links.mkdir()
    (only_links / "cat").symlink_to(elsewhere / "cat")
    with pytest.raises(
        InvalidData, match="1 entries cannot be read, such as cat: outside allowed prefixes"
    ) as refused:
        open_source(str(only_links))
    assert "files are none" not in str(refused.value), "there are no others"
    (source / "root").symlink_to(tmp_path)
    everything = open_source(str(source), access=Access((str(tmp_path),))).list()
    assert len({os.path.realpath(source / s.locator) for s in everything.samples}) == 4, "round once"


def test_a_link_that_is_the_source_is_followed(tmp_path):
    folder = class_folders(tmp_path / "data", classes=2, per_class=1)
    (tmp_path / "link").symlink_to(folder)
    source = open_source(str(tmp_path / "link"))
    assert source.read("class0/0.png") == (folder / "class0" / "0.png").read_bytes()


def test_names_that_are_not_utf_8_are_reported_escaped(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=1)
    shutil.copy(source / "class0" / "0.png", os.fsencode(source / "class0") + b"/caf\xe9.png")
    os.mkdir(os.fsencode(source) + b"/\xff")
    ref = ingest(config(source), str(tmp_path / "store"))
    assert ref.rows == 2
    assert sorted((row["id"], row["reason"]) for row in quarantine(ref)) == [
        ("\\xff", "name is not UTF-8"),
        ("class0/caf\\xe9.png", "name is not UTF-8"),
    ]


def test_a_link_to_a_name_that_is_not_utf_8_is_reported_escaped(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=1)
    outside = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(outside)
    os.symlink(outside, os.fsencode(source) + b"/class0/link")
    ref = ingest(config(source), str(tmp_path / "store"))
    (row,) = quarantine(ref)
    assert (row["reason"], row["id"]) == ("outside allowed prefixes", "class0/link")
    assert "\\udcff; it must" in row["detail"]


def test_a_folder_that_may_not_be_read_is_reported(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=1)
    (source / "closed").mkdir(mode=0)
    (source / "class0" / "closed.png").touch(mode=0)
    listing = open_source(str(source)).list()
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    assert problems(listing)["closed"] == "unreadable folder"


def test_the_store_within_a_source_is_no_part_of_it(tmp_path):
    source = class_folders(tmp_path, classes=3, per_class=2)
    store = str(tmp_path / "dml-store")
    first = ingest(config(source), store)
    assert first.classes == 3
    write(tmp_path / "dml-store", {"galleries/g.png": picture(5), "reports/r/p.png": picture(6)})
    assert ingest(config(source), store) == first
    assert ingest(config(source), str(tmp_path.parent / "other-store")).fingerprint == first.fingerprint


def test_a_source_that_is_itself_the_store_leaves_out_what_it_made(tmp_path):
    source = class_folders(tmp_path, classes=3, per_class=2)
    first = ingest(config(source), str(source))
    write(tmp_path, {"galleries/g.png": picture(5)})
    assert ingest(config(source), str(source)) == first


def test_a_store_on_s3_within_a_source_is_no_part_of_it(s3_store):
    for number, label in enumerate(("cat", "dog")):
        storage.write_bytes(f"{s3_store}/{label}/{number}.png", picture(number))
    first = ingest(config(s3_store), f"{s3_store}/mine")
    storage.write_bytes(f"{s3_store}/mine/galleries/g.png", picture(9))
    assert ingest(config(s3_store), f"{s3_store}/mine") == first


@pytest.mark.slow
def test_keys_on_s3_may_hold_any_character(s3_store, tmp_path):
    names = [f"cat {c}/{c}.png" for c in " ü#%?+&=;:@~'()[]{}!*,$^"] + ["50%25/a%20b.png", "café/é.png"]
    for number, name in enumerate(names):
        storage.write_bytes(f"{s3_store}/raw/{name}", picture(number))
    ref = ingest(config(f"{s3_store}/raw"), str(tmp_path / "store"))
    assert (ref.rows, ref.quarantined) == (len(names), 0)
    assert sorted(read_rows(ref)["id"].to_pylist()) == sorted(names)


def pack(target, members: dict[str, bytes], method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def rewritten(path, name: str, offset: int, value: int):
    """Changes two bytes of a member's entry in both of a zip's lists."""
    content = bytearray(path.read_bytes())
    for signature, at_name, shift in ((b"PK\x03\x04", 30, 0), (b"PK\x01\x02", 46, 2)):
        for start in (match.start() for match in re.finditer(re.escape(signature), content)):
            if content[start + at_name :].startswith(name.encode()):
                struct.pack_into("<H", content, start + offset + shift, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(8, 9, "unreadable file"), (8, 97, "unreadable file"), (6, 1, "encrypted")],
    ids=["Deflate64", "an unknown method", "encrypted"],
)
def test_a_member_that_python_does_not_unpack_is_one_refused_row(tmp_path, offset, value, reason):
    members = {f"{label}/{n}.png": picture(n) for label in "ab" for n in (1, 2)}
    archive = rewritten(pack(tmp_path / "z.zip", members), "a/1.png", offset, value)
    ref = ingest(config(archive), str(tmp_path / "store"))
    assert ref.rows == 3
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [("a/1.png", reason)]


def test_damaged_members_are_refused_rows(tmp_path):
    members = {f"{label}/{n}.png": picture(n, size=(40, 40)) for label in "ab" for n in (1, 2)}
    path = pack(tmp_path / "z.zip", members)
    content = bytearray(path.read_bytes())
    place = content.index(b"a/1.png") + 500
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    ref = ingest(config(path), str(tmp_path / "store"))
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [("a/1.png", "unreadable file")]


def test_a_zip_bomb_is_refused_by_the_size_it_declares(tmp_path):
    bomb = tmp_path / "z.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/1.png", picture(1))
        archive.writestr("b/1.png", picture(2))
        with archive.open("a/bomb.png", "w", force_zip64=True) as stream:
            for _ in range(512):
                stream.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ref = ingest(config(bomb), str(tmp_path / "store"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << (10 if sys.platform == "linux" else 20)
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [("a/bomb.png", "too many bytes")]


def test_a_member_that_is_longer_than_it_declares_is_not_read_on(tmp_path):
    path = pack(tmp_path / "z.zip", {"a/1.png": picture(1), "b/2.png": bytes(1 << 20)})
    content = bytearray(path.read_bytes())
    real, said = struct.pack("<I", 1 << 20), struct.pack("<I", 1000)
    path.write_bytes(content.replace(real, said))
    with pytest.raises(Refused):
        open_source(str(path)).read("b/2.png", max_bytes=5000)


@pytest.mark.parametrize("name", ["../../etc/a.png", "/etc/a.png", "x/../../a.png", "..\\a.png"])
def test_a_member_named_out_of_its_zip_is_refused(tmp_path, name):
    path = pack(tmp_path / "z.zip", {"a/1.png": picture(1), "b/1.png": picture(2), name: picture(3)})
    listing = open_source(str(path)).list()
    assert set(labels(listing)) == {"a/1.png", "b/1.png"}
    assert list(problems(listing).values()) == ["outside allowed prefixes"]


def test_names_in_zips_are_read_as_macos_and_windows_write_them(tmp_path):
    path = pack(tmp_path / "macos.zip", {"cafXX/1.png": picture(1), "dog/2.png": picture(2)})
    path.write_bytes(path.read_bytes().replace(b"cafXX/", "café/".encode()))
    assert labels(open_source(str(path)).list()) == {"café/1.png": "café", "dog/2.png": "dog"}
    assert open_source(str(path)).read("café/1.png") == picture(1)
    path = pack(tmp_path / "windows.zip", {"cat\\1.png": picture(1), "dog\\2.png": picture(2)})
    assert labels(open_source(str(path)).list()) == {"cat/1.png": "cat", "dog/2.png": "dog"}
    assert open_source(str(path)).read("cat/1.png") == picture(1)


def test_members_have_the_names_that_unpacking_would_give_them(tmp_path):
    names = ["./a/1.png", "a//2.png", "b/x\\3.png", "./b/./x/4.png", "b/x/5.png"]
    path = pack(tmp_path / "z.zip", {name: picture(n) for n, name in enumerate(names)})
    source = open_source(str(path))
    samples = source.list().samples
    assert labels(source.list()) == {
        "a/1.png": "a",
        "a/2.png": "a",
        "b/x/3.png": "b/x",
        "b/x/4.png": "b/x",
        "b/x/5.png": "b/x",
    }
    assert [source.read(sample.locator) for sample in samples] == [picture(n) for n in range(5)]


@pytest.mark.parametrize("damage", [b"", b"PK\x05\x06" + bytes(10), b"x" * 300, zlib.compress(b"x")])
def test_a_file_that_is_no_zip_is_refused(tmp_path, damage):
    (tmp_path / "z.zip").write_bytes(damage)
    with pytest.raises(InvalidData, match="must be a"):
        open_source(str(tmp_path / "z.zip"))


def test_a_zip_is_known_by_its_content_and_a_folder_may_be_named_as_one(tmp_path):
    pack(tmp_path / "images.bin", {"a/1.png": picture(1), "b/1.png": picture(2)})
    assert len(open_source(str(tmp_path / "images.bin")).list().samples) == 2
    folder = class_folders(tmp_path / "folder.zip", classes=2, per_class=1)
    assert len(open_source(str(folder)).list().samples) == 2


def test_a_zip_that_was_replaced_is_read_anew(tmp_path):
    path = pack(tmp_path / "z.zip", {"a/1.png": picture(1)})
    assert len(open_source(str(path)).list().samples) == 1
    pack(tmp_path / "y.zip", {"a/1.png": picture(1), "b/2.png": picture(2)}).rename(path)
    os.utime(path, ns=(1, 1))
    assert len(open_source(str(path)).list().samples) == 2


def test_a_source_that_cannot_be_listed_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a named pipe"), ("/dev/null", "a device")):
        with pytest.raises(InvalidData, match=f"must be a folder, a zip or a manifest; .* is {what}"):
            open_source(str(path))
    with pytest.raises(MissingArtifact, match="no folder"):
        open_source(str(tmp_path / "nothing"))


def test_a_source_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for source in (f"{tmp_path}/loop", f"{tmp_path}/loop/a.csv", "~no-such-user/x", "a\0b"):
        with pytest.raises(InvalidSetting, match="must be resolvable"):
            open_source(source)
    with pytest.raises(MissingArtifact, match="no folder"):
        open_source("x" * 5000)
    for source in ("https://user:secret@host/a.zip?key=1", "ftp://host/x", "gs://bucket/x"):
        with pytest.raises(InvalidSetting, match="named by a manifest") as refused:
            open_source(source)
        assert "secret" not in str(refused.value)
        assert "key" not in str(refused.value)


def test_the_same_tree_has_one_fingerprint_as_a_folder_and_as_a_zip(tmp_path):
    tree = {f"Train/{label}/{n}": picture(n) for n, label in enumerate("abab")}
    tree |= {f"TEST/{label}/{n}": picture(n) for n, label in enumerate("cdcd", start=10)}
    tree |= {"Train/a/notes.txt": b"x", "readme.md": b"x", "Train/Thumbs.db": b"x"}
    folder = write(tmp_path / "deep" / "er", tree)
    zips = [
        pack(tmp_path / "bare.zip", tree),
        pack(tmp_path / "outer.zip", {f"deep/er/{name}": content for name, content in tree.items()}),
    ]
    refs = [
        ingest(IngestConfig(name="d", source=str(source)), str(tmp_path / "store"))
        for source in (folder, tmp_path / "deep", *zips)
    ]
    assert len({ref.fingerprint for ref in refs}) == 1
    assert refs[0].splits["train"].rows == refs[0].splits["test"].rows == 4
    assert refs[0].attributes == {"part": "string"}
