"""Errors: exit statuses, the nearest name, addresses without passwords."""

import pytest

from dml import errors
from dml.errors import DmlError, did_you_mean, without_password


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InvalidSetting, 2),
        (errors.InvalidData, 2),
        (errors.TooManyRefused, 1),
        (errors.MissingArtifact, 2),
        (errors.IncompatibleArtifact, 2),
        (errors.CorruptArtifact, 2),
        (errors.Unreachable, 2),
        (errors.StackFailed, 1),
        (errors.TrainingFailed, 2),
    ],
)
def test_the_exit_status_says_whether_the_user_or_the_run_was_at_fault(kind, status):
    assert issubclass(kind, DmlError)
    assert kind.exit_status == status


def test_a_setting_that_cannot_be_followed_is_a_value_error_too():
    assert issubclass(errors.InvalidSetting, ValueError)


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("semihard", " Did you mean 'semi_hard'?"),
        ("RANDOM", " Did you mean 'random'?"),
        ("zzz", ""),
        ("abcde", " Did you mean 'abcdz' or 'abcdy' or 'abcdx'?"),
    ],
)
def test_of_the_nearest_names_at_most_three_are_said(word, end):
    known = ["random", "semi_hard", "abcdw", "abcdx", "abcdy", "abcdz"]
    assert did_you_mean(word, known) == end


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:4200/api", "http://host:4200/api"),
        ("postgresql://me@host/db and s3://a@b/c", "postgresql://host/db and s3://b/c"),
        ("http://host/a@b", "http://host/a@b"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_an_address_is_shown_without_user_and_password(text, shown):
    assert without_password(text) == shown
