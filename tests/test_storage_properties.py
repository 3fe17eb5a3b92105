"""What holds of any name, of any damage and in any order, on a local disk and on S3."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dml import storage
from dml.errors import CorruptArtifact, MissingArtifact

VERSIONS = ("v1", "v2", "v3", "v4")


def examples(most: int) -> Callable[[Any], Any]:
    """The same examples in each run; its fixtures are shared by all of them."""
    return settings(
        max_examples=most,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


# Any Unicode but what XML, in which S3 lists, cannot hold; names with "." in front are unfinished work.
names = st.text(
    st.one_of(
        st.sampled_from(" #%?&+=~'\"\\:;@|*"), st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"])
    ),
    min_size=1,
    max_size=12,
).filter(lambda name: "/" not in name and not name.startswith("."))


def check_round_trip(store: str, folder: str, name: str, content: bytes) -> None:
    uri = storage.join(store, "keys", folder, name)
    storage.write_bytes(uri, content)
    assert storage.read_bytes(uri) == content
    assert storage.list_names(storage.join(store, "keys", folder)) == [name]
    storage.delete(storage.join(store, "keys"))
    assert not storage.exists(uri)


@examples(40)
@given(names, names, st.binary(max_size=8))
def test_any_name_on_a_local_disk_is_written_read_listed_and_removed_as_it_is(
    tmp_path, folder, name, content
):
    check_round_trip(str(tmp_path), folder, name, content)


@examples(6)
@given(names, names, st.binary(max_size=8))
def test_any_key_on_s3_is_written_read_listed_and_removed_as_it_is(s3_store, folder, name, content):
    check_round_trip(s3_store, folder, name, content)


def published(store: str) -> str:
    """A version with files of several sizes, and the pointer to it."""
    parent = storage.join(store, "things", "one")
    if not storage.is_complete(storage.join(parent, "v1")):
        with storage.staged(storage.join(parent, "v1")) as staged:
            for name, content in {"a": b"\0", "b/c": bytes(range(256)), "d": b"12345"}.items():
                storage.write_bytes(storage.join(staged, name), content)
            storage.publish(staged, storage.join(parent, "v1"), {"kind": "test", "created": "now"})
        storage.point(parent, "v1")
    return parent


def check_damage(store: str, file: str, place: float, damage: int | None) -> None:
    parent = published(store)
    uri = storage.join(parent, file)
    whole = storage.read_bytes(uri)
    position = int(place * len(whole))
    flipped = b"" if damage is None else bytes([whole[position] ^ damage]) + whole[position + 1 :]
    storage.write_bytes(uri, whole[:position] + flipped)
    with pytest.raises(CorruptArtifact, match=file.rpartition("/")[2]):
        storage.verify(storage.find_version(parent, None, "thing"))
    storage.write_bytes(uri, whole)
    storage.verify(storage.find_version(parent, None, "thing"))


files = st.sampled_from(["current.json", "v1/manifest.json", "v1/a", "v1/b/c", "v1/d"])
places = st.floats(0, 1, exclude_max=True)
bits = st.one_of(st.none(), st.integers(0, 7).map(lambda bit: 1 << bit))  # None: cut short there


@examples(40)
@given(files, places, bits)
def test_any_bit_flipped_or_byte_cut_off_on_a_local_disk_is_noticed(tmp_path, file, place, damage):
    check_damage(str(tmp_path), file, place, damage)


@pytest.mark.slow
@examples(10)
@given(files, places, bits)
def test_any_bit_flipped_or_byte_cut_off_on_s3_is_noticed(s3_store, file, place, damage):
    check_damage(s3_store, file, place, damage)


class PointerMachine(RuleBasedStateMachine):
    """A pointer beside a plain list of what was current, the latest first."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        shutil.rmtree(folder, ignore_errors=True)
        self.parent = str(folder / "things" / "one")
        self.there: set[str] = set()
        self.history: list[str] = []

    @rule(version=st.sampled_from(VERSIONS))
    def publish(self, version: str) -> None:
        with storage.staged(storage.join(self.parent, version)) as staged:
            storage.publish(staged, storage.join(self.parent, version), {"kind": "test"})
        self.there.add(version)

    @rule(version=st.sampled_from(VERSIONS))
    def remove(self, version: str) -> None:
        storage.remove(storage.join(self.parent, version))
        self.there.discard(version)

    @rule(version=st.sampled_from(VERSIONS))
    def point(self, version: str) -> None:
        if version not in self.there:
            with pytest.raises(MissingArtifact, match="removed"):
                storage.point(self.parent, version)
            return
        storage.point(self.parent, version)
        self.history = [version, *(former for former in self.history if former != version)]

    @rule(version=st.sampled_from([None, *VERSIONS]))
    def go_back(self, version: str | None) -> None:
        whole = [former for former in self.history[1:] if former in self.there]
        with storage.locked_pointer(self.parent) as pointer:
            if version not in whole and (version is not None or not whole):
                with pytest.raises(MissingArtifact, match="former version"):
                    pointer.roll_back(version)
                return
            chosen = version or whole[0]
            assert pointer.roll_back(version) == chosen
        self.history = self.history[self.history.index(chosen) :]

    @invariant()
    def names_what_the_list_does(self) -> None:
        assert storage.current(self.parent) == (self.history[0] if self.history else None)
        assert storage.former_versions(self.parent) == self.history[1:]
        assert storage.list_versions(self.parent) == sorted(self.there)


def test_a_pointer_follows_a_plain_list_in_whatever_order_versions_come_and_go(tmp_path):
    run_state_machine_as_test(
        lambda: PointerMachine(tmp_path), settings=settings(examples(10), stateful_step_count=20)
    )
