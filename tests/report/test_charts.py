"""Charts draw the numbers of the metrics room; those that nobody could read are not drawn."""

import io
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dml.metrics.verification import roc_of_all_pairs
from dml.report import charts, style
from dml.report.circle_histogram import CircleHistogram, draw_circle_histograms
from dml.report.class_gains import draw_class_gains, plot_bars
from dml.report.findings import ClassGain
from dml.report.plane import PlanePoints, draw_planes
from dml.report.projection import Map, map_of

RATES = (0.001, 0.01, 0.1)


def case(num_items=60, num_classes=6, dim=8, seed=0):
    chance = np.random.default_rng(seed)
    labels = np.arange(num_items) % num_classes
    vectors = chance.standard_normal((num_classes, dim))[labels] + chance.standard_normal((num_items, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


def curve_of(vectors, labels):
    return roc_of_all_pairs(torch.from_numpy(vectors), torch.from_numpy(labels), false_accept_rates=(0.5,))


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has_color(png, color):
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((np.abs(picture(png).astype(int) - wanted).max(axis=2) <= 2).any())


def test_histograms_count_every_pair_once():
    vectors, labels = case()
    edges, positives, negatives = charts.pair_histograms(curve_of(vectors, labels), bins=32)
    above = np.triu_indices(len(labels), 1)
    similarities = (vectors.astype(np.float64) @ vectors.T)[above]
    same = labels[above[0]] == labels[above[1]]
    for shares, chosen in ((positives, same), (negatives, ~same)):
        counts = np.histogram(similarities[chosen], edges)[0]
        np.testing.assert_allclose(shares, counts / chosen.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 5.0, 20.0], ids=["wide", "narrow", "very narrow"])
def test_similarities_that_crowd_together_get_finer_bins(offset):
    vectors, labels = case()
    vectors = vectors + offset * np.eye(8, dtype=np.float32)[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _, positives, negatives = charts._readable_histograms(curve_of(vectors, labels))
    assert (positives > 0).sum() + (negatives > 0).sum() > 40
    assert positives.sum() == pytest.approx(1)
    assert negatives.sum() == pytest.approx(1)


def test_the_thresholds_drawn_are_those_of_verification():
    curve = curve_of(*case())
    axes = Figure().add_subplot()
    charts.plot_similarities(axes, curve, charts.operating_points(curve, RATES))
    drawn = [float(segment[0, 0]) for lines in axes.collections for segment in lines.get_segments()]
    measured = [curve.at_false_accept_rate(rate).threshold for rate in sorted(RATES)]
    finite = [threshold for threshold in measured if np.isfinite(threshold)]
    assert drawn == finite
    assert len(finite) >= 2
    words = [text.get_text() for text in axes.texts]
    assert words[-1].startswith(f"≥ {finite[-1]:.3f}: false accepts 1 in 10, true accepts ")


def test_a_rate_that_no_threshold_keeps_is_left_out():
    vectors, labels = case(num_items=12, num_classes=3)
    vectors[1] = vectors[0]  # the most similar pair of all is of two classes
    points = charts.operating_points(curve_of(vectors, labels), [1e-6, 0.5])
    assert list(points) == [0.5]


@pytest.mark.parametrize("separate", [False, True], ids=["overlapping", "separable"])
def test_similarities_and_roc_are_drawn(separate):
    vectors, labels = case()
    if separate:
        vectors = np.eye(8, dtype=np.float32)[labels]
    curve = curve_of(vectors, labels)
    points = charts.operating_points(curve, RATES)
    assert has_color(charts.draw_similarities(curve, points), style.POSITIVE)
    assert has_color(charts.draw_roc(curve, points), style.POSITIVE)


def test_two_embeddings_are_drawn_in_one_picture_on_axes_that_hold_both():
    vectors, labels = case()
    curves = {
        "ours": curve_of(np.eye(8, dtype=np.float32)[labels], labels),
        "theirs": curve_of(vectors, labels),
    }
    png = charts.draw_both_rocs(curves, RATES)
    assert has_color(png, style.FIRST)
    assert has_color(png, style.SECOND)
    one = charts.draw_similarities(curves["theirs"], charts.operating_points(curves["theirs"], RATES))
    both = charts.draw_both_similarities(curves, RATES)
    assert picture(both).shape[0] > 1.8 * picture(one).shape[0]
    least = charts._prepare_roc(Figure().add_subplot(), list(curves.values()), [0.1])
    assert least <= min(float(c.false_accept_rates[c.impostor > 0][0]) for c in curves.values())


@pytest.mark.parametrize("num_classes", [1, 12, 400])
def test_a_bar_is_a_classs_gain_and_few_classes_have_their_names(num_classes):
    shares = np.random.default_rng(0).random((num_classes, 2))
    gains = [ClassGain(label, 1 + label % 3, *each) for label, each in enumerate(shares.tolist())]
    names = {each.label: f"class {each.label}" for each in gains}
    axes = Figure().add_subplot()
    plot_bars(axes, gains, names, ("ours", "theirs"))
    assert [bar.get_height() for bar in axes.patches] == [each.gain for each in gains]
    mean = sum(each.gain * each.num_queries for each in gains) / sum(each.num_queries for each in gains)
    assert [text.get_text() for text in axes.texts] == [f"all queries {mean:+.3f}"]
    words = [text.get_text() for text in axes.get_xticklabels()]
    assert (words == list(names.values())) == (num_classes <= 40)
    colors = {style.FIRST if each.gain > 0 else style.SECOND for each in gains}
    assert all(has_color(draw_class_gains(gains, names, ("ours", "theirs")), color) for color in colors)


def test_a_long_name_of_an_embedding_is_cut_to_30_characters_in_a_title():
    axes = Figure().add_subplot()
    plot_bars(axes, [ClassGain(0, 1, 0.5, 0.25)], {0: "class"}, ("a" * 31, "b" * 30))
    assert axes.get_title() == f"above 0 {'a' * 29}… is better, below {'b' * 30}"


def test_equal_inputs_give_equal_bytes():
    vectors, labels = case()
    curve = curve_of(vectors, labels)
    points = charts.operating_points(curve, RATES)
    assert charts.draw_roc(curve, points) == charts.draw_roc(curve, points)
    shown = np.unique(labels)
    names = {int(label): f"class {label}" for label in shown}
    draws = [
        charts.draw_map(map_of(vectors, labels, shown=shown, most=100), labels, names, shown)
        for _ in range(2)
    ]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    "label", ["$x^", "$\\frac$", "a $ b $ c", "_hidden", "two\nlines", "日本", "\x1b[31m"]
)
def test_a_label_is_drawn_as_it_is_whatever_is_in_it(label):
    actual = Map(np.arange(4), np.random.default_rng(0).standard_normal((4, 2)), "given")
    labels = np.zeros(4, dtype=np.int64)
    without = charts.draw_map(actual, labels, {0: "."}, np.array([0]))
    assert charts.draw_map(actual, labels, {0: label}, np.array([0])) != without


@pytest.mark.parametrize("label", ["\u6c49\u5b57", "a\x1b[31mb", "a\u202eb"])
def test_a_label_that_the_font_lacks_or_that_is_a_control_warns_of_nothing(label):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with style.figure(4, 1) as (drawn, png):
            drawn.text(0.5, 0.5, style.short(label))
    assert png.getvalue()
    assert style.short(label).isprintable()


def test_training_curves_get_a_panel_each():
    one = picture(charts.draw_curves({"loss": [(10, 1.0), (20, 0.5)]}))
    two = picture(charts.draw_curves({"loss": [(10, 1.0), (20, 0.5)], "recall": [(20, 0.25), (40, 0.5)]}))
    assert two.shape[1] == 2 * one.shape[1]


def test_a_map_keeps_half_of_its_places_for_the_classes_shown():
    vectors, labels = case(num_items=3000, num_classes=300)
    shown = np.array([7, 150])
    drawn = map_of(
        vectors[:, :2] / np.linalg.norm(vectors[:, :2], axis=1)[:, None], labels, shown=shown, most=40
    )
    assert len(drawn.rows) == len(np.unique(drawn.rows)) == 40
    assert np.isin(labels[drawn.rows], shown).sum() == 20
    assert (np.diff(drawn.rows) > 0).all()


def test_two_dimensions_are_shown_as_they_are():
    vectors, labels = case(dim=2)
    drawn = map_of(vectors, labels, shown=np.unique(labels), most=1000)
    np.testing.assert_array_equal(drawn.points, vectors)
    assert "itself" in drawn.how


def test_neighbours_on_the_map_are_neighbours_in_the_embedding():
    vectors, labels = case(num_items=120, num_classes=4, dim=32)
    vectors = vectors + 3 * np.eye(32, dtype=np.float32)[labels]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    drawn = map_of(vectors, labels, shown=np.unique(labels), most=1000)
    distances = np.linalg.norm(drawn.points[:, None] - drawn.points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.95


def test_a_map_keeps_the_order_of_classes_and_forgets_the_size_of_its_start():
    """Classes along half a circle; a start as large as the finished map would be left as it is."""
    labels = np.repeat(np.arange(10), 12)
    vectors = 0.15 * np.random.default_rng(0).standard_normal((len(labels), 16))
    vectors[:, 0] += np.cos(labels / 10 * np.pi)
    vectors[:, 1] += np.sin(labels / 10 * np.pi)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    points = map_of(vectors, labels, shown=np.unique(labels), most=1000).points
    centers = np.array([points[labels == label].mean(0) for label in range(10)])
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=2)
    assert (distances[0].argsort() == np.arange(10)).mean() > 0.7
    assert np.abs(points).max() < 50


@pytest.mark.parametrize("num_items", [1, 2, 3])
def test_very_few_items_are_a_map_too(num_items):
    vectors, labels = case(num_items=num_items, num_classes=2)
    drawn = map_of(vectors, labels, shown=np.unique(labels), most=10)
    assert drawn.points.shape == (num_items, 2)
    assert np.isfinite(drawn.points).all()


def test_many_classes_are_grey_beside_those_shown():
    labels = np.arange(30) // 3
    drawn = Map(np.arange(30), np.random.default_rng(0).standard_normal((30, 2)), "given")
    png = charts.draw_map(drawn, labels, {0: "zero"}, np.array([0]))
    assert has_color(png, style.COLORS[0])
    assert has_color(png, style.FAINT)
    assert not has_color(png, style.COLORS[1])


@pytest.mark.parametrize("num_classes", [1, 10, 30])
def test_circles_are_drawn_of_any_number_of_classes(num_classes):
    chance = np.random.default_rng(0)
    labels = np.arange(60) % num_classes
    vectors = chance.standard_normal((60, 2)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = {label: f"class {label}" for label in range(num_classes)}
    png = draw_circle_histograms(
        [CircleHistogram(f"loss {number}", vectors, labels, names) for number in range(5)]
    )
    for color in style.RING_COLORS[: min(num_classes, 10)]:
        assert has_color(png, color)
    height, width = picture(png).shape[:2]
    assert (width, height) == (4 * 420, 2 * 492), "four in a line, each 3.5 x 4.1 inches of 120 pixels"


@pytest.mark.parametrize(("planes", "columns", "lines"), [(1, 1, 1), (3, 3, 1), (5, 4, 2)])
def test_each_plane_is_above_its_circle(planes, columns, lines):
    vectors, labels = case(dim=2)
    circle = CircleHistogram("softmax", vectors, labels, {label: str(label) for label in range(6)})
    height, width = picture(draw_planes([PlanePoints(3 * vectors, labels, circle)] * planes)).shape[:2]
    assert (width, height) == (columns * 420, lines * 888), "3.5 x 7.4 inches of 120 pixels"


@pytest.mark.parametrize(
    ("rate", "text"), [(0.001, "1 in 1,000"), (1e-6, "1 in 1,000,000"), (0.5, "1 in 2"), (0.3, "0.3")]
)
def test_rates_are_said_as_people_say_them(rate, text):
    assert style.rate_text(rate) == text
