"""An ingest reads what is new or has changed, and gives what a full one would."""

import csv
import os
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml import storage
from dml.config import IngestConfig, NoSplit
from dml.data.dataset import find_dataset, fragments, read_images, read_rows
from dml.data.ingest import ingest_again, ingest_source
from dml.data.known_files import FILES, current_files
from dml.data.mapped import open_mapped
from dml.data.sources.glyphs import GlyphsSource
from dml.data.sources.sample import Sample, Stamp
from dml.errors import IncompatibleArtifact, TooManyRefused
from dml.reports import DatasetChanges
from tests.data.opened import files_opened
from tests.data.pictures import class_folders, picture, write


def settle() -> None:
    """Wait until a file's last change is so long ago that another one changes its times."""
    time.sleep(0.15)


def taken_in(source, store, *, reread=False, **settings):
    config = {"split": NoSplit(), "rows_per_fragment": 8, "rows_per_group": 3, **settings}
    return ingest_source(IngestConfig(name="d", source=str(source), **config), str(store), reread=reread)


def rows(ref) -> list[dict]:
    """All rows with their images, by id."""
    table = read_rows(ref)
    images = read_images(ref, range(ref.rows))
    found = [{**row, "image": image} for row, image in zip(table.to_pylist(), images, strict=True)]
    for row in found:
        assert storage.digest_of_bytes(row["image"]) == row["sha256"]
        row.pop("position")
    return sorted(found, key=lambda row: row["id"])


def folder(tmp_path: Path) -> Path:
    source = class_folders(tmp_path / "source", classes=10, per_class=4)
    settle()
    return source


def test_an_unchanged_source_is_not_read(tmp_path):
    source = folder(tmp_path)
    first = taken_in(source, tmp_path / "store")
    assert first.changes.files_read == first.changes.added == 40
    with files_opened(source) as opened:
        again = taken_in(source, tmp_path / "store")
    assert opened == []
    assert (again.outcome, again.dataset) == ("current", first.dataset)
    assert again.changes == DatasetChanges(unchanged=40)


def test_only_what_is_new_or_changed_is_read_and_written(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    before = {each.name: each for each in fragments(taken_in(source, store).dataset)}
    written = {name: os.stat(each.uri).st_ctime_ns for name, each in before.items()}
    write(source, {"class3/new.png": picture(900), "class7/2.png": picture(901)})
    (source / "class5" / "1.png").unlink()
    with files_opened(source) as opened:
        report = taken_in(source, store)
    assert sorted(opened) == [str(source / "class3/new.png"), str(source / "class7/2.png")]
    assert report.changes.files_read == 2
    assert (report.changes.added, report.changes.changed, report.changes.removed) == (1, 1, 1)
    after = {each.name: each for each in fragments(report.dataset)}
    assert len(after.keys() - before.keys()) == 1, "the two rows lie in one new file"
    assert sum(len(each.deleted) for each in after.values()) == 2
    for name in after.keys() & before.keys():
        assert os.stat(after[name].uri).st_ctime_ns == written[name], "it was not written again"
    assert report.dataset.fingerprint == taken_in(source, tmp_path / "other").dataset.fingerprint


def test_the_former_version_is_still_read_as_it_was(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    first = taken_in(source, store).dataset
    before = rows(first)
    shutil.rmtree(source / "class2")
    taken_in(source, store)
    assert rows(first) == before


def test_a_changed_label_in_a_manifest_is_a_relabel_that_reads_no_image(tmp_path):
    source, store = class_folders(tmp_path / "source", classes=4), tmp_path / "store"
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.png"))

    def listed(labels: dict[str, str]) -> Path:
        lines = [f"{name},{labels.get(name, name.split('/')[0])}" for name in names]
        (source / "all.csv").write_text("\n".join(["image,label", *lines]))
        return source / "all.csv"

    settle()
    taken_in(listed({}), store)
    with files_opened(source) as opened:
        report = taken_in(listed({"class0/1.png": "class3"}), store)
    assert {Path(path).name for path in opened} == {"all.csv"}
    assert report.changes == DatasetChanges(relabelled=1, unchanged=19)
    assert {row["id"]: row["label"] for row in rows(report.dataset)}["class0/1.png"] == "class3"


def test_a_new_attribute_reads_no_image(tmp_path):
    source, store = class_folders(tmp_path / "source", classes=3), tmp_path / "store"
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.png"))
    (source / "all.csv").write_text("\n".join(["image,label", *(f"{n},{n.split('/')[0]}" for n in names)]))
    settle()
    taken_in(source / "all.csv", store)
    lines = [f"{name},{name.split('/')[0]},{number}" for number, name in enumerate(names)]
    (source / "all.csv").write_text("\n".join(["image,label,price", *lines]))
    report = taken_in(source / "all.csv", store)
    assert report.changes.files_read == 0
    assert [row["price"] for row in rows(report.dataset)] == list(range(15))


def same_size(path: Path) -> None:
    """Other content of the same size, with the former mtime."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1  # in the checksum of the last chunk, which Pillow reads past
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_by_copy(path: Path) -> None:
    """`cp -p` of another file of the same size and mtime over it."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-20] + b"\1" + path.read_bytes()[-19:])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copy2(other, path)
    other.unlink()


@pytest.mark.parametrize("change", [same_size, replaced_by_copy])
def test_other_content_of_the_same_size_and_mtime_is_noticed(tmp_path, change):
    source, store = class_folders(tmp_path / "source", classes=3), tmp_path / "store"
    for path in source.rglob("*.png"):
        path.write_bytes(picture(int(path.stem), form="BMP"))
    settle()
    before = taken_in(source, store)
    change(source / "class1" / "2.png")
    report = taken_in(source, store)
    assert report.changes.changed == 1
    assert report.dataset != before.dataset
    assert report.dataset.fingerprint == taken_in(source, tmp_path / "other").dataset.fingerprint


def test_swapped_folders_are_noticed(tmp_path):
    source, store = class_folders(tmp_path / "source", classes=3), tmp_path / "store"
    for path in source.rglob("*.png"):
        path.write_bytes(picture(int(path.stem) + 10 * int(path.parent.name[-1]), form="BMP"))
        os.utime(path, (1e9, 1e9))
    settle()
    taken_in(source, store)
    for former, new in (("class0", "x"), ("class1", "class0"), ("x", "class1")):
        (source / former).rename(source / new)
    assert taken_in(source, store).changes.changed == 10


@dataclass(frozen=True)
class Stamped(GlyphsSource):
    """A source whose files have these stamps."""

    of_files: tuple[Stamp | None, ...] = ()

    def stamps(self, locators):
        return self.of_files


def test_a_file_is_known_only_once_its_times_would_show_a_further_change():
    """A change within the tick of a file system's clock leaves them as they are."""
    second_ns, now_ns = 10**9, time.time_ns()
    last_second_ns = now_ns // second_ns * second_ns - second_ns
    stamps = {
        "just now": (Stamp("a", now_ns), False),
        "in the future": (Stamp("a", now_ns + 9 * second_ns), False),
        "a while ago": (Stamp("a", last_second_ns + 7), True),
        "a second ago, in whole seconds": (Stamp("a", last_second_ns), False),
        "some seconds ago, in whole seconds": (Stamp("a", last_second_ns - 2 * second_ns), True),
        "by its content": (Stamp("a"), True),
        "nothing known": (None, False),
    }
    source = Stamped(of_files=tuple(stamp for stamp, _ in stamps.values()))
    files = current_files(source, [Sample(name, name, "label") for name in stamps])
    assert [file.is_settled for file in files] == [is_settled for _, is_settled in stamps.values()]


def test_a_file_that_changed_as_it_was_listed_is_known_once_it_is_older(tmp_path):
    source, store = class_folders(tmp_path / "source"), tmp_path / "store"
    taken_in(source, store)
    settle()
    taken_in(source, store)
    assert taken_in(source, store).changes.files_read == 0


def test_everything_is_read_again_on_request_and_nothing_is_written_twice(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    first = taken_in(source, store)
    write(source, {"class3/new.png": picture(900)})
    report = taken_in(source, store, reread=True)
    assert report.changes.files_read == 41
    assert {each.name for each in fragments(first.dataset)} < {
        each.name for each in fragments(report.dataset)
    }


@pytest.mark.parametrize("limits", [{"max_pixels": 50}, {"max_bytes": 100}])
def test_a_lower_limit_refuses_what_was_accepted(tmp_path, limits):
    source, store = folder(tmp_path), tmp_path / "store"
    taken_in(source, store)
    with pytest.raises(TooManyRefused):
        taken_in(source, store, **limits)


def test_a_refused_file_is_read_again(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    write(source, {"class0/bad.png": b"no image"})
    settle()
    taken_in(source, store)
    report = taken_in(source, store)
    assert report.changes.files_read == 1
    assert [refusal.reason for refusal in report.refused] == ["not an image"]


def test_images_under_several_labels_are_refused_as_by_a_full_ingest(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    settings = {"quarantine_contradictions": True, "max_quarantined": 1}
    taken_in(source, store, **settings)
    shutil.copy(source / "class1" / "0.png", source / "class2" / "twin.png")
    report = taken_in(source, store, **settings)
    assert report.dataset.rows == 39
    full = taken_in(source, tmp_path / "other", **settings)
    assert (report.dataset.fingerprint, report.refused) == (full.dataset.fingerprint, full.refused)


def test_a_member_of_a_zip_is_known_by_its_checksum(tmp_path):
    source, store = class_folders(tmp_path / "source"), tmp_path / "store"

    def packed() -> Path:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for path in sorted(source.rglob("*.png")):
                archive.write(path, str(path.relative_to(source)))
        return tmp_path / "all.zip"

    taken_in(packed(), store)
    write(source, {"class0/new.png": picture(900), "class1/1.png": picture(901)})
    report = taken_in(packed(), store)
    assert (report.changes.files_read, report.changes.added, report.changes.changed) == (2, 1, 1)


def test_many_small_changes_do_not_leave_many_small_files(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    for number in range(40):
        write(source, {f"class{number % 10}/more{number}.png": picture(500 + number)})
        report = taken_in(source, store)
    sizes = [each.rows for each in fragments(report.dataset)]
    assert sum(sizes) == 80
    assert len(sizes) <= 8 + 4 * 80 // 8
    assert report.dataset.fingerprint == taken_in(source, tmp_path / "other").dataset.fingerprint


def test_a_file_with_more_than_a_quarter_deleted_is_written_anew(tmp_path):
    source, store = folder(tmp_path), tmp_path / "store"
    taken_in(source, store, rows_per_fragment=100)
    for number in range(10):
        (source / f"class{number}" / "0.png").unlink()
    quarter = taken_in(source, store, rows_per_fragment=100).dataset
    assert [(each.rows, len(each.deleted)) for each in fragments(quarter)] == [(30, 10)]
    (source / "class0" / "1.png").unlink()
    more = taken_in(source, store, rows_per_fragment=100)
    assert [(each.rows, each.deleted) for each in fragments(more.dataset)] == [(29, ())]
    assert more.changes.files_read == 0


def test_a_mapped_copy_has_the_rows_that_count(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    source, store = folder(tmp_path), tmp_path / "store"
    taken_in(source, store)
    (source / "class1" / "2.png").unlink()
    ref = taken_in(source, store).dataset
    mapped = open_mapped(ref)
    assert [bytes(mapped.image(row)) for row in range(ref.rows)] == read_images(ref, range(ref.rows))


def test_a_version_made_again_has_its_rows_in_the_same_order(tmp_path):
    source, store = folder(tmp_path), str(tmp_path / "store")
    taken_in(source, store)
    write(source, {"class1/more.png": picture(900), "class4/more.png": picture(901)})
    (source / "class5" / "1.png").unlink()
    ref = taken_in(source, store).dataset
    order = read_rows(ref, columns=["id"])["id"].to_pylist()
    assert order != sorted(order)
    for each in [fragments(ref)[1], fragments(ref)[3], fragments(ref)[-1]]:
        Path(each.uri).write_bytes(b"damaged")
    assert ingest_again(ref, store) == ref
    storage.verify(ref.uri)
    assert read_rows(ref, columns=["id"])["id"].to_pylist() == order


def test_rows_in_another_order_are_not_taken_for_those_that_were_embedded(tmp_path):
    ref = taken_in(folder(tmp_path), tmp_path / "store").dataset
    with pytest.raises(IncompatibleArtifact, match="in another"):
        read_rows(ref.model_copy(update={"order": "0" * 64}))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "change", "relabel", "remove", "rename", "twin", "break", "attribute"]),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=6,
)


class Catalogue:
    """A manifest with images beside it, that grows and changes."""

    def __init__(self, root: Path) -> None:
        self.root, self.next = root, 0
        self.items: dict[str, list[str]] = {}
        for _ in range(24):
            self.apply("add", self.next)

    def apply(self, step: str, number: int) -> None:
        names = sorted(self.items)
        name = names[number % len(names)] if names else ""
        if step == "add" or len(names) < 5:
            self.next += 1
            name = f"image{self.next}.png"
            write(self.root, {name: picture(self.next)})
            self.items[name] = [f"class{number % 5}", str(number % 3)]
        elif step == "change":
            write(self.root, {name: picture(number)})
        elif step == "relabel":
            self.items[name][0] = f"class{number % 7}"
        elif step == "attribute":
            self.items[name][1] = str(number % 9)
        elif step == "break":
            write(self.root, {name: b"no image"})
        elif step == "twin":
            self.next += 1
            shutil.copy(self.root / name, self.root / f"image{self.next}.png")
            self.items[f"image{self.next}.png"] = [f"class{number % 5}", "1"]
        elif step == "rename":
            self.next += 1
            (self.root / name).rename(self.root / f"image{self.next}.png")
            self.items[f"image{self.next}.png"] = self.items.pop(name)
        else:
            (self.root / name).unlink()
            del self.items[name]

    def written(self) -> Path:
        with (self.root / "all.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["image", "label", "size:string"]])
            csv.writer(stream).writerows([name, *values] for name, values in sorted(self.items.items()))
        return self.root / "all.csv"


@settings(max_examples=6, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4), st.booleans())
def test_what_is_taken_in_step_by_step_is_what_is_taken_in_at_once(tmp_path_factory, nights, contradictions):
    root = tmp_path_factory.mktemp("grown")
    catalogue = Catalogue(root / "source")
    limits = {"max_quarantined": 1, "quarantine_contradictions": contradictions}
    settle()
    taken_in(catalogue.written(), root / "store", **limits)
    for number, steps in enumerate(nights):
        for step in steps:
            catalogue.apply(*step)
        settle()
        grown = taken_in(catalogue.written(), root / "store", **limits)
        full = taken_in(catalogue.written(), root / f"full{number}", **limits)
        assert grown.dataset.fingerprint == full.dataset.fingerprint
        assert rows(grown.dataset) == rows(full.dataset)
        assert grown.refused == full.refused
        assert grown.changes.files_read <= len(steps) + grown.dataset.quarantined
        storage.verify(grown.dataset.uri)


def test_a_version_is_found_by_its_content_whatever_its_order(tmp_path):
    source, store = folder(tmp_path), str(tmp_path / "store")
    first = taken_in(source, store).dataset
    content = (source / "class2" / "1.png").read_bytes()
    (source / "class2" / "1.png").unlink()
    taken_in(source, store)
    write(source, {"class2/1.png": content})
    again = taken_in(source, store)
    assert (again.outcome, again.dataset, find_dataset(store, "d")) == ("found", first, first)


def test_the_numbers_of_a_delta_are_those_of_rows_of_files():
    from dml.data.dataset import StoredFragment

    fragment = StoredFragment("fragment", 5, (0, 3))
    np.testing.assert_array_equal(fragment.file_rows(), [1, 2, 4, 5, 6])


@pytest.mark.parametrize("damage", ["a folder", "cut", "of another program", "empty"])
def test_where_the_table_of_known_files_cannot_be_read_a_warning_says_that_all_images_are_read(
    tmp_path, caplog, damage
):
    source, store = folder(tmp_path), tmp_path / "store"
    first = taken_in(source, store)
    table = store / "datasets" / "d" / FILES
    content = table.read_bytes()
    table.unlink()
    if damage == "a folder":
        table.mkdir()
    else:
        table.write_bytes({"cut": content[:-9], "of another program": b"PAR1", "empty": b""}[damage])
    again = taken_in(source, store)
    assert (again.outcome, again.dataset, again.changes.files_read) == ("current", first.dataset, 40)
    assert f"all images are read again, since {table} cannot be read" in caplog.text
    if damage == "a folder":
        assert f"{table} cannot be written" in caplog.text
    else:
        assert taken_in(source, store).changes.files_read == 0
