"""One option is spelt, typed and meant alike in every verb."""

import getpass

import pytest
import typer

from dml.cli.app import who_or_user
from dml.cli.command import app
from dml.errors import InvalidSetting

REPEATED_VERBS = {"--set", "--where", "--compare", "--by", "--never-ask", "--scope", "--hint", "--attribute"}
"""Options that take several values and whose name is no noun, or that say one thing each time."""


def options():
    """(option, what it takes, the beginning of its help) of every verb."""

    def walk(command):
        for parameter in command.params:
            if parameter.param_type_name == "option":
                kind = (
                    parameter.type_descriptor.annotation,
                    parameter.multiple,
                    parameter.min,
                    parameter.max,
                )
                yield parameter.opts[0], kind, (parameter.help or "").partition(";")[0]
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    return list(walk(typer.main.get_command(app)))


def test_an_option_takes_and_means_the_same_in_every_verb():
    said = {}
    for name, kind, meaning in options():
        said.setdefault(name, set()).add((kind, meaning))
    assert {name: each for name, each in said.items() if len(each) > 1} == {}


def test_what_takes_several_is_plural_and_what_takes_one_is_not_spelt_so_elsewhere():
    several = {name for name, (_, multiple, *_), _ in options() if multiple} - REPEATED_VERBS
    one = {name for name, (_, multiple, *_), _ in options() if not multiple}
    assert {name for name in several if not name.endswith("s")} == set()
    assert several & one == set()


def test_the_nouns_of_the_house_are_options_by_their_own_name():
    names = {name for name, *_ in options()}
    assert {
        "--store",
        "--json",
        "--dataset",
        "--model",
        "--index",
        "--name",
        "--workers",
        "--preset",
    } <= names
    assert {"--datasets", "--losses", "--minings", "--presets"} <= names
    assert not {"--loss", "--mining", "--num-workers", "--output"} & names


def test_several_words_after_an_option_are_as_many_options():
    circles = typer.main.get_command(app).commands["circles"]
    context = circles.make_context("circles", ["shop", "--losses", "softmax", "margin", "--json"])
    assert (context.params["losses"], context.params["as_json"]) == (["softmax", "margin"], True)


def test_who_does_it_is_the_user_of_the_machine_or_somebody_with_a_name():
    assert (who_or_user(None), who_or_user("ann")) == (getpass.getuser(), "ann")
    with pytest.raises(InvalidSetting, match="--who must name somebody; got ' '"):
        who_or_user(" ")
