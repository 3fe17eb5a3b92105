"""Omniglot (Lake et al. 2015): handwritten characters, `images_background/ALPHABET/CHARACTER/`."""

from dataclasses import dataclass

from dml.config import AttributeSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import Listing, Problem, Sample

ROOTS = ("images_background", "images_evaluation")
_TEST_ALPHABETS = 10


@dataclass(frozen=True)
class OmniglotSource:
    """A class is one character of one alphabet; the last ten alphabets are held out."""

    files: Files

    def scan(self) -> Listing:
        samples, problems = [], []
        for name in self.files.names():
            parts = name.split("/")
            if len(parts) < 3 or not name.endswith(".png"):
                continue
            parts = parts[-3:]  # the same ids whether the zip, its folder or `images_background` was named
            alphabet, character, file = parts
            if not character.startswith("character"):
                problems.append(
                    Problem(name, "", name, "no label", "expected ALPHABET/characterNN/drawing.png")
                )
                continue
            label = f"{alphabet}/{character}"
            samples.append(Sample(f"{label}/{file}", name, label, attributes={"alphabet": alphabet}))
        return Listing(samples, AttributeSplit(name="alphabet", test_values=_TEST_ALPHABETS), problems)

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)
